"""Answers that are no logits, recognised by their numbers and by how they come about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distill.options import OutputForm

SUM_TOLERANCE = 1e-3
"""Probabilities that a network computed in 16 bits sum to one no more exactly."""


def recognise(rows: Tensor) -> OutputForm | None:  # (N, K, *places)
    """The form of a network's answers to different images, if they are no logits.

    No network of logits answers with rows that all sum to one. Numbers between 0 and 1 may be small
    logits as well.
    """
    if not rows.isfinite().all() or rows.min() < 0:
        return None
    is_row = rows.ndim > 1 and rows.shape[1] > 1
    if is_row and (rows.sum(1) - 1).abs().max() < SUM_TOLERANCE:
        return "probabilities"
    return "sigmoid" if rows.min() > 0 and rows.max() <= 1 else None


def seem_bounded(rows: Tensor) -> bool:  # (N, K, *places)
    """Whether answers that were not recognised look like no logits all the same: all lie between 0
    and 1, or none is negative and all rows sum to one number.
    """
    if not rows.isfinite().all() or rows.min() < 0 or rows.min() == rows.max():
        return False
    sums = rows.sum(1) if rows.ndim > 1 and rows.shape[1] > 1 else None
    even = sums is not None and (sums - sums.mean()).abs().max() < SUM_TOLERANCE * sums.mean()
    return bool(rows.max() <= 1 or even)


def takes_sigmoid(run: Callable[[], object], shape: torch.Size) -> bool:
    """Whether a sigmoid of as many numbers is taken on the way."""
    with _Sigmoids() as sigmoids:
        run()
    return shape.numel() in sigmoids.sizes


class _Sigmoids(TorchDispatchMode):
    """Notes how many numbers every sigmoid is taken of."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.sigmoid, torch.ops.aten.sigmoid_):
            self.sizes.append(result.numel())
        return result
