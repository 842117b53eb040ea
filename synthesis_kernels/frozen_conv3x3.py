"""What a frozen network does around a 3×3 convolution, as one: BatchNorm, ReLU and moments before
it, a sum after it.

The normalised map is never written, and the convolution's output is what the next layer reads: of
the memory that goes to and fro in a frozen network, less than half is left. There is a native form
only (see `conv3x3`); elsewhere the parts run one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthesis_kernels import native
from synthesis_kernels.bn_match import Moments
from synthesis_kernels.conv3x3 import packed_room


@dataclass(frozen=True)
class Norm:
    """A frozen BatchNorm before the convolution."""

    scale: Tensor
    """(I,) float32, like the shift."""
    shift: Tensor
    relu: bool
    """Whether a ReLU follows it."""
    moments: Moments | None = None
    """Where the moments of its input go, if anybody reads them."""
    start: int = 0
    """The first of its channels there."""


def frozen_conv3x3(
    x: Tensor,  # (B, I, H, W) float32 or bfloat16
    weight: Tensor,  # (O, I, 3, 3) float32, like the bias
    bias: Tensor | None = None,  # (O,)
    norm: Norm | None = None,
    residual: Tensor | None = None,  # (B, O, H, W) as x
) -> tuple[Tensor, Tensor | None, Tensor]:
    """conv(norm(x)) + bias + residual; the moments' token, if they are read; and x again, for those
    who need it beside: what they say of it is then added on the way back. Differentiable in x and
    residual.
    """
    return _Frozen.apply(x, residual, weight, bias, norm)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        norm: Norm | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        rows = native.as_rows(x)
        added = None if residual is None else native.as_rows(residual)
        out = torch.empty(*rows.shape[:3], len(weight), dtype=rows.dtype)
        vectors, relu, moments, start = _parts(norm)
        sums = None if moments is None else native.Memory(moments.sums[..., start:])
        sizes = (*rows.shape, len(weight), *weight.stride(), False, relu, *_place(moments))
        given = (rows, *vectors, sums, native.Memory(weight), bias, added)
        native.call("conv3x3", rows.dtype, *given, packed_room(rows, weight), out, *sizes)
        ctx.save_for_backward(rows if norm else None, weight)
        ctx.norm = norm
        token = None if moments is None else moments.values.detach()
        return native.as_channels(out), token, native.as_channels(rows)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, slopes: Tensor | None, above: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        vectors, relu, moments, start = _parts(ctx.norm)
        shape = (*_shape_of(grad, slopes, above, ctx), weight.shape[1])
        raise NotImplementedError(shape)


def _parts(
    norm: Norm | None,
) -> tuple[tuple[Tensor | None, Tensor | None], bool, Moments | None, int]:
    """Scale and shift, whether there is a ReLU, moments and their place."""
    if norm is None:
        return (None, None), False, None, 0
    return (norm.scale, norm.shift), norm.relu, norm.moments, norm.start


def _place(moments: Moments | None) -> tuple[int, int]:
    """Groups, and channels of all layers."""
    if moments is None:
        return 1, 0
    return moments.groups, moments.sums.shape[-1]
