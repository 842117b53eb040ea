"""What a network takes of memory, of which a file from elsewhere may ask for any amount."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distill.limits import require_room
from distill.models.classifier import Classifier, ModelSpec
from distill.models.modes import evaluating
from distill.sizes import say_size
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.errors import EchosetError


def outline_of(spec: ModelSpec, build: Callable[[ModelSpec], Classifier]) -> nn.Module | None:
    """The network without memory for its weights; None where it can't be built so."""
    for mode in (torch.device("meta"), _Unfilled()):
        try:
            with mode:
                return build(spec).network
        except EchosetError:
            continue
    return None


class _Unfilled(TorchFunctionMode):
    """Weights without memory, for a constructor that looks at other values (torchvision's regnets
    do).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        settings = dict(kwargs or {})
        if func is torch.empty:
            settings["device"] = "meta"
        return func(*args, **settings)


def require_room_for_answers(classifier: Classifier, path: str | Path) -> None:
    """Refuse a file whose layers' answers to one image take more memory than a file may. They are
    added up while they are made; what a convolution will answer is known before.
    """
    spec = classifier.spec
    counting = _Counting(f"what its layers make of an image of {say_size(spec.size)}", path)
    counting.add(math.prod(spec.shape) * 4)
    counting.add(math.prod(classifier.answer_shape) * 4)
    handles = []
    for module in classifier.network.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_pre_hook(counting.foresee))
        elif not any(module.children()):
            handles.append(module.register_forward_hook(counting.count))
    try:
        with torch.no_grad(), evaluating(classifier), kernel_form("reference"):
            classifier.network(torch.zeros(1, *spec.shape))
    except EchosetError:
        raise
    except Exception:  # whatever a network raises is told where its answers are looked at
        return
    finally:
        for handle in handles:
            handle.remove()


class _Counting:
    """Adds up bytes, and refuses to go on where they are too many."""

    def __init__(self, content: str, path: str | Path) -> None:
        self.content = content
        self.path = path
        self.bytes = 0

    def add(self, more: int) -> None:
        self.bytes += more
        require_room(self.bytes, self.path, self.content)

    def foresee(self, module: nn.Conv2d, inputs: tuple[Any, ...]) -> None:
        """Before a convolution: about what it will answer."""
        height, width = inputs[0].shape[-2:]
        places = height * width // (module.stride[0] * module.stride[1])
        self.add(places * module.out_channels * 4)

    def count(self, module: nn.Module, inputs: tuple[Any, ...], answer: Any) -> None:
        if isinstance(answer, Tensor) and not any(answer is each for each in inputs):
            self.add(answer.numel() * answer.element_size())
