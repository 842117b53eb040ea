"""Adam (Kingma & Ba 2015) for many vectors at once, in the operations of one."""

from __future__ import annotations

import operator

import torch
from torch import Tensor


class Vectors:
    """Adam's moments of several vectors end to end, so that all vectors move together.

    The moments of a vector v are (2, 2, n): the averages of its gradients g and of g², and those
    that a series of ones would have, by which these are divided. They are 1 − βᵗ, where t counts
    the gradients that this very vector has had.
    """

    def __init__(self, parameters: list[Tensor], kept: list[Tensor | None]) -> None:
        device = parameters[0].device
        kind = torch.float32
        for parameter in parameters:
            kind = torch.promote_types(kind, parameter.dtype)
        sizes = [parameter.numel() for parameter in parameters]
        new = torch.ones(2, 2, sum(sizes), dtype=kind, device=device)
        moments = torch.zeros_like(new)
        self.parts = list(moments.split(sizes, 2))
        for part, old in zip(self.parts, kept, strict=True):
            if old is not None:
                part.copy_(old)
        self._new = new
        self._moments = moments
        self._rates = torch.tensor([0.1, 0.001], dtype=kind, device=device).view(2, 1, 1)
        # Seen in the ways that a step needs, which then only computes.
        self._gradient, self._square = new[:, 0]
        self._sums = moments[:, 0]
        self._ones = moments[:, 1]
        self._averages = torch.empty_like(new[0])
        self._first, self._second = self._averages
        self._gradients = _like(self._gradient, parameters)
        self._moves = _like(self._first, parameters)

    def holds(self, kept: list[Tensor | None]) -> bool:
        """Whether these are the moments of its vectors."""
        return len(kept) == len(self.parts) and all(map(operator.is_, kept, self.parts))

    def moves(self, gradients: list[Tensor], rate: Tensor) -> list[Tensor]:
        """How far each vector moves."""
        torch._foreach_copy_(self._gradients, gradients)
        torch.mul(self._gradient, self._gradient, out=self._square)
        self._moments.lerp_(self._new, self._rates)
        torch.div(self._sums, self._ones, out=self._averages)
        self._second.sqrt_().add_(1e-8)
        self._first.div_(self._second).mul_(rate)
        return self._moves


def _like(row: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """The row cut into the parameters' shapes."""
    parts = row.split([parameter.numel() for parameter in parameters])
    return [part.view(one.shape) for part, one in zip(parts, parameters, strict=True)]
