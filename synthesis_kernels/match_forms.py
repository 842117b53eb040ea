"""The passes of `bn_match` over rows of channels, in each form: `forms(form)` has five functions,
and each writes what it finds into a tensor it is given.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.choices import Form

Added = tuple[Tensor, Tensor]
"""Another input, and where its sum with the first one goes; that sum is normalised."""


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
        added: Added | None = None,
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
        above: Tensor | None = None,  # like rows: the gradient of the sum that was normalised
    ) -> None:
        """The gradient of rows: through ReLU and scale, and d mean/dx = 1/n and d variance/dx =
        2(x − mean)/n of the n rows of a group.
        """

    def apply_forward(
        self,
        rows: Tensor,
        y: Tensor,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        added: Added | None = None,
    ) -> None:
        """The output alone."""

    def apply_backward(
        self,
        rows: Tensor,
        grad: Tensor,
        out: Tensor,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        above: Tensor | None = None,
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
        added: Added | None = None,
    ) -> None:
        groups, lines, width = sums.shape
        vectors = (rows, *(added or (rows, y)), y, scale, shift, sums)
        sizes = (*_sizes(rows, groups), relu, added is not None)
        place = (groups, start, width, lines // 2 - 1)
        native.call("match_forward", rows.dtype, *vectors, *sizes, *place)

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
        above: Tensor | None = None,
    ) -> None:
        width = moments.shape[-1]
        groups = moments.numel() // (2 * width)
        given = (rows, grad, grad if above is None else above)
        vectors = (*given, out, scale, shift, moments, slopes)
        sizes = (*_sizes(rows, groups), relu, above is not None)
        native.call("match_backward", rows.dtype, *vectors, *sizes, groups, start, width)

    def apply_forward(
        self,
        rows: Tensor,
        y: Tensor,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        added: Added | None = None,
    ) -> None:
        vectors = (rows, *(added or (rows, y)), y, scale, shift)
        sizes = (*_sizes(rows, 1), relu, added is not None)
        native.call("apply_forward", rows.dtype, *vectors, *sizes)

    def apply_backward(
        self,
        rows: Tensor,
        grad: Tensor,
        out: Tensor,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        above: Tensor | None = None,
    ) -> None:
        vectors = (rows, grad, grad if above is None else above, out, scale, shift)
        sizes = (*_sizes(rows, 1), relu, above is not None)
        native.call("apply_backward", rows.dtype, *vectors, *sizes)


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
        added: Added | None = None,
    ) -> None:
        self.apply_forward(rows, y, scale, shift, relu, added)
        if added:
            rows = added[1]
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
        above: Tensor | None = None,
    ) -> None:
        both = torch.stack([moments, slopes]).view(2, -1, 2, moments.shape[-1])
        layer = both[..., start : start + rows.shape[-1]].to(scale.dtype)
        (mean, _), (to_mean, to_variance) = layer.transpose(1, 2).unsqueeze(3)
        wide = _by_group(rows, len(mean)).to(scale.dtype)
        count = wide.shape[1]
        through = self._through(rows, grad, scale, shift, relu, above).view_as(wide)
        by_moments = (wide - mean) * (to_variance * (2 / count)) + to_mean / count
        out.copy_((through + by_moments).view_as(rows))

    def apply_forward(
        self,
        rows: Tensor,
        y: Tensor,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        added: Added | None = None,
    ) -> None:
        if added:
            other, total = added
            rows = total.copy_(rows + other)
        wide = rows.to(scale.dtype) * scale + shift
        y.copy_(wide.relu() if relu else wide)

    def apply_backward(
        self,
        rows: Tensor,
        grad: Tensor,
        out: Tensor,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        above: Tensor | None = None,
    ) -> None:
        out.copy_(self._through(rows, grad, scale, shift, relu, above))

    @staticmethod
    def _through(
        rows: Tensor,
        grad: Tensor,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        above: Tensor | None,
    ) -> Tensor:
        through = grad.to(scale.dtype) * scale
        if relu:
            through = torch.where(rows.to(scale.dtype) * scale + shift > 0, through, 0)
        return through if above is None else through + above


def _by_group(rows: Tensor, groups: int) -> Tensor:  # (B, *, C) -> (groups, n, C)
    return rows.view(groups, -1, rows.shape[-1])


def _sizes(rows: Tensor, groups: int) -> tuple[int, int]:
    """Rows of a group, and channels."""
    channels = rows.shape[-1]
    return rows.numel() // channels // groups, channels


_NATIVE = _Native()
_TORCH = _Torch()
