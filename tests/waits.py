"""How often code waits for the device, told on a machine that has none."""

from collections import Counter

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READING = {"tolist", "cpu", "numpy", "__array__"}
"""Methods of a tensor that a CPU carries out without any operation."""
SENDING = {torch.tensor, torch.as_tensor, torch.from_numpy}
"""What makes a tensor of numbers that the host has: on CUDA they are sent, and waited for."""
ASKING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero"}
"""Operations whose result the host needs, or whose result's shape."""


class Waits(TorchDispatchMode):
    """Counts waits, by what waits."""

    def __init__(self):
        super().__init__()
        self.found = Counter()
        self.methods = _Methods(self.found)

    def __enter__(self):
        self.methods.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.methods.__exit__(*error)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.name().partition(".")[0]
        if name in ASKING or (name.startswith("aten::index") and _has_mask(arguments)):
            self.found[name] += 1
        return function(*arguments, **(keywords or {}))


def _has_mask(arguments):
    """Whether places are chosen by a boolean tensor, so that they have to be counted first."""
    places = arguments[1] if len(arguments) > 1 else ()
    if not isinstance(places, list | tuple):
        return False
    return any(isinstance(each, Tensor) and each.dtype is torch.bool for each in places)


class _Methods(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        name = getattr(function, "__name__", "")
        sent = name == "__setitem__" and self._is_sent(*arguments)
        if sent or name in READING or function in SENDING:
            self.found[name] += 1
        before = Counter(self.found)
        result = function(*arguments, **(keywords or {}))
        if name == "one_hot":  # it looks at what it is given on a CPU alone
            self.found.clear()
            self.found.update(before)
        return result

    @staticmethod
    def _is_sent(_, places, value):
        """A number assigned to places that a tensor chooses is sent to the device."""
        by_tensor = any(isinstance(leaf, Tensor) for leaf in tree_leaves(places))
        return by_tensor and not isinstance(value, Tensor)
