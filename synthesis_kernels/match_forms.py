"""The passes of `bn_match` over rows of channels, in each form: `forms(form)` has five functions,
and each writes what it finds into a tensor it is given.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.choices import Form


class Passes(Protocol):
    """What a form has."""

    def match_forward(
        self,
        rows: Tensor,  # (B, *, C) contiguous
        y: Tensor,  # like rows, written
        scale: Tensor,  # (C,) of the type to compute in, like shift
        shift: Tensor,
        sums: Tensor,  # (groups, 2 + 2·parts, ΣC) written from the channel `start` on
        relu: bool,
        start: int,
    ) -> None:
        """The output, and a layer's sums (see `bn_match.Moments`)."""

    def match_finish(self, sums: Tensor, moments: Tensor) -> None:
        """Means and biased variances of all layers, (groups, 2, ΣC), written."""

    def match_backward(
        self,
        rows: Tensor,  # (B, *, C) contiguous, like grad
        grad: Tensor,
        out: Tensor,  # like rows, written
        scale: Tensor,  # (C,) of the type to compute in, like shift
        shift: Tensor,
        moments: Tensor,  # (groups, 2, ΣC)
        slopes: Tensor,  # the loss's gradient by the moments
        relu: bool,
        start: int,
    ) -> None:
        """The gradient of rows: through ReLU and scale, and d mean/dx = 1/n and d variance/dx =
        2(x − mean)/n of the n rows of a group.
        """

    def apply_forward(
        self, rows: Tensor, y: Tensor, scale: Tensor, shift: Tensor, relu: bool
    ) -> None:
        """The output alone."""

    def apply_backward(
        self, rows: Tensor, grad: Tensor, out: Tensor, scale: Tensor, shift: Tensor, relu: bool
    ) -> None:
        """The gradient of rows through ReLU and scale."""


def forms(form: Form) -> Passes:
    """The passes in this form."""
    if form == "native":
        return _NATIVE
    if form == "triton":
        from synthesis_kernels.triton_forms import bn_match

        return bn_match
    return _TORCH


def parts_of(form: Form) -> int:
    """Partial sums that a layer may write: one a thread, or one a program."""
    if form == "native":
        return torch.get_num_threads()
    if form == "triton":
        from synthesis_kernels.triton_forms import bn_match

        return bn_match.PROGRAMS
    return 1


def empty_like(rows: Tensor) -> Tensor:
    """Memory alone: `torch.empty_like` is one more operation to be dispatched."""
    return torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)


class _Native:
    """In C++, for the CPU."""

    def match_forward(
        self,
        rows: Tensor,
        y: Tensor,
        scale: Tensor,
        shift: Tensor,
        sums: Tensor,
        relu: bool,
        start: int,
    ) -> None:
        groups, lines, width = sums.shape
        sizes = (*_sizes(rows, groups), relu, groups, start, width, lines // 2 - 1)
        native.call("match_forward", rows.dtype, rows, y, scale, shift, sums, *sizes)

    def match_finish(self, sums: Tensor, moments: Tensor) -> None:
        groups, lines, width = sums.shape
        native.call("match_finish", sums.dtype, sums, moments, groups, width, lines // 2 - 1)

    def match_backward(
        self,
        rows: Tensor,
        grad: Tensor,
        out: Tensor,
        scale: Tensor,
        shift: Tensor,
        moments: Tensor,
        slopes: Tensor,
        relu: bool,
        start: int,
    ) -> None:
        width = moments.shape[-1]
        groups = moments.numel() // (2 * width)
        vectors = (rows, grad, out, scale, shift, moments, slopes)
        sizes = (*_sizes(rows, groups), relu, groups, start, width)
        native.call("match_backward", rows.dtype, *vectors, *sizes)

    def apply_forward(
        self, rows: Tensor, y: Tensor, scale: Tensor, shift: Tensor, relu: bool
    ) -> None:
        native.call("apply_forward", rows.dtype, rows, y, scale, shift, *_sizes(rows, 1), relu)

    def apply_backward(
        self, rows: Tensor, grad: Tensor, out: Tensor, scale: Tensor, shift: Tensor, relu: bool
    ) -> None:
        vectors = (rows, grad, out, scale, shift)
        native.call("apply_backward", rows.dtype, *vectors, *_sizes(rows, 1), relu)


class _Torch:
    """In torch's operations, for every device and type."""

    def match_forward(
        self,
        rows: Tensor,
        y: Tensor,
        scale: Tensor,
        shift: Tensor,
        sums: Tensor,
        relu: bool,
        start: int,
    ) -> None:
        self.apply_forward(rows, y, scale, shift, relu)
        wide = _by_group(rows, len(sums)).to(scale.dtype)
        variance, mean = torch.var_mean(wide, 1, correction=0)
        layer = sums[..., start : start + rows.shape[-1]]
        # One part, taken around the mean itself.
        layer[:, 0] = mean
        layer[:, 1] = 1
        layer[:, 2] = 0
        layer[:, 3] = variance

    def match_finish(self, sums: Tensor, moments: Tensor) -> None:
        centre, _, offset, square = sums.unbind(1)
        found = torch.stack([centre + offset, (square - offset.square()).clamp_min(0)], 1)
        moments.copy_(found.view_as(moments))

    def match_backward(
        self,
        rows: Tensor,
        grad: Tensor,
        out: Tensor,
        scale: Tensor,
        shift: Tensor,
        moments: Tensor,
        slopes: Tensor,
        relu: bool,
        start: int,
    ) -> None:
        both = torch.stack([moments, slopes]).view(2, -1, 2, moments.shape[-1])
        layer = both[..., start : start + rows.shape[-1]].to(scale.dtype)
        (mean, _), (to_mean, to_variance) = layer.transpose(1, 2).unsqueeze(3)
        wide = _by_group(rows, len(mean)).to(scale.dtype)
        count = wide.shape[1]
        through = self._through(rows, grad, scale, shift, relu).view_as(wide)
        by_moments = (wide - mean) * (to_variance * (2 / count)) + to_mean / count
        out.copy_((through + by_moments).view_as(rows))

    def apply_forward(
        self, rows: Tensor, y: Tensor, scale: Tensor, shift: Tensor, relu: bool
    ) -> None:
        wide = rows.to(scale.dtype) * scale + shift
        y.copy_(wide.relu() if relu else wide)

    def apply_backward(
        self, rows: Tensor, grad: Tensor, out: Tensor, scale: Tensor, shift: Tensor, relu: bool
    ) -> None:
        out.copy_(self._through(rows, grad, scale, shift, relu))

    @staticmethod
    def _through(rows: Tensor, grad: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
        through = grad.to(scale.dtype) * scale
        if relu:
            through = torch.where(rows.to(scale.dtype) * scale + shift > 0, through, 0)
        return through


def _by_group(rows: Tensor, groups: int) -> Tensor:  # (B, *, C) -> (groups, n, C)
    return rows.view(groups, -1, rows.shape[-1])


def _sizes(rows: Tensor, groups: int) -> tuple[int, int]:
    """Rows of a group, and channels."""
    channels = rows.shape[-1]
    return rows.numel() // channels // groups, channels


_NATIVE = _Native()
_TORCH = _Torch()
