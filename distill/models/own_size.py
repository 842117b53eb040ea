"""A network's answers at its own size.

Many networks that decide at each pixel compute fewer answers than there are pixels, and enlarge
them at the very end. What is kept of their answers is kept as it was before that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from distill.tasks.places import enlarge

ENLARGING = (
    F.interpolate,
    torch.ops.aten.upsample_bilinear2d.vec,
    torch.ops.aten.upsample_bilinear2d.default,
)
"""How networks do it; the last two in exported programs. What TorchScript does can't be heard."""


class OwnSize(TorchFunctionMode):
    """Within it `interpolate` is listened to; `undo` then takes a last enlargement back."""

    def __init__(self) -> None:
        super().__init__()
        self._enlarged: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in ENLARGING:
            given = args[0] if args else (kwargs or {})["input"]
            if given.ndim == 4 and given.numel() < result.numel():
                self._enlarged.append(given)
        return result

    def undo(self, logits: Tensor) -> Tensor:  # (B, K, *places) -> (B, K, h, w), in float32
        """What these answers were enlarged from: smaller ones of which `enlarge` makes them. Others
        as they are.
        """
        if logits.ndim == 4:
            for given in reversed(self._enlarged):
                if given.shape[:2] == logits.shape[:2] and _becomes(given, logits):
                    return given.float()
        return logits.float()


def _becomes(given: Tensor, logits: Tensor) -> bool:
    """Whether just these answers come of it; they may be cast to float32 since."""
    return torch.equal(enlarge(given, logits.shape[2:]).to(logits.dtype), logits)
