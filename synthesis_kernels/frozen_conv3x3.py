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
from synthesis_kernels.conv3x3 import MOST_WEIGHTS, packed_room
from synthesis_kernels.errors import EchosetError


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


class Packed:
    """A layer's weights as the kernels read them, kept from pass to pass while they are the same;
    large ones are not.
    """

    def __init__(self) -> None:
        self._kept: dict[bool, tuple[object, Tensor]] = {}

    def clear(self) -> None:
        """Forget them: the weights have changed."""
        self._kept.clear()

    def find(self, rows: Tensor, weight: Tensor, turned: bool) -> tuple[Tensor, bool]:
        """Where they are, and whether they have still to be put there."""
        key = (weight._version, weight.data_ptr(), rows.dtype)
        if turned in self._kept and self._kept[turned][0] == key:
            return self._kept[turned][1], False
        room = packed_room(rows, weight)
        if weight.shape[0] * weight.shape[1] <= MOST_WEIGHTS:
            self._kept[turned] = (key, room)
        return room, True


def frozen_conv3x3(
    x: Tensor,  # (B, I, H, W) float32 or bfloat16
    weight: Tensor,  # (O, I, 3, 3) float32, like the bias
    bias: Tensor | None = None,  # (O,)
    norm: Norm | None = None,
    residual: Tensor | None = None,  # (B, O, H, W) as x
    packed: Packed | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """conv(norm(x)) + bias + residual; the moments' token, if they are read; and x again, for those
    who need it beside: what they say of it is then added on the way back. Differentiable in x and
    residual.
    """
    if norm is not None and len(norm.scale) != x.shape[1]:
        raise EchosetError(f"a BatchNorm of {len(norm.scale)} channels was given {x.shape[1]}")
    if norm is not None and norm.moments is not None and len(x) % norm.moments.groups:
        groups = norm.moments.groups
        raise EchosetError(f"a batch of {len(x)} is no {groups} groups of equal size")
    if norm is not None and norm.moments is not None:
        parts = norm.moments.sums.shape[1] // 2 - 1
        if parts != torch.get_num_threads():
            raise EchosetError(f"moments for {parts} threads, and there are now others")
    return _Frozen.apply(x, residual, weight, bias, norm, packed or Packed())


class _Frozen(native.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        norm: Norm | None,
        packed: Packed,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        rows = native.as_rows(x)
        added = None if residual is None else native.as_rows(residual)
        at_end = None if bias is None else bias.contiguous()
        out = torch.empty(*rows.shape[:3], len(weight), dtype=rows.dtype)
        vectors, relu, moments, start = _parts(norm)
        sums = None if moments is None else native.Memory(moments.sums[..., start:])
        room, packs = packed.find(rows, weight, False)
        sizes = (*rows.shape, len(weight), *weight.stride(), False, relu, packs, *_place(moments))
        given = (rows, *vectors, sums, native.Memory(weight), at_end, added, room, out)
        native.call("conv3x3", rows.dtype, *given, *sizes)
        ctx.packed = packed
        ctx.save_for_backward(weight, *([rows] if norm else []))
        ctx.norm = norm
        ctx.shape = rows.shape
        ctx.dtype = rows.dtype
        token = None if moments is None else moments.values.detach()
        return native.as_channels(out), token, native.as_channels(rows)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, slopes: Tensor | None, above: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        rows = kept[0] if kept else None
        if grad is None:
            grad = weight.new_zeros(*ctx.shape[:3], len(weight), dtype=ctx.dtype).movedim(-1, 1)
        grad_rows = native.as_rows(grad)
        vectors, relu, moments, start = _parts(ctx.norm)
        told: tuple[native.Argument, ...] = (None, None)
        if moments is not None and slopes is not None:
            told = tuple(native.Memory(each[..., start:]) for each in (moments.values, slopes))
        out = torch.empty(ctx.shape, dtype=ctx.dtype)
        beside = None if above is None else native.as_rows(above)
        room, packs = ctx.packed.find(grad_rows, weight, True)
        given = (grad_rows, native.Memory(weight), rows, *vectors, *told, beside, room, out)
        sizes = (*ctx.shape, len(weight), *weight.stride(), relu, packs, *_place(moments))
        native.call("conv3x3_backward", ctx.dtype, *given, *sizes)
        to_residual = grad if ctx.needs_input_grad[1] else None
        return native.as_channels(out), to_residual, None, None, None, None


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
