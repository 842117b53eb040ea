"""Maps of two networks, or of two stages of one, brought to one shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Pair, Part
from synthesis_kernels import native
from synthesis_kernels.backend import pick_form


def same_side(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:  # (B, C, h, w), (B, D, H, W)
    """The two maps, the larger one averaged down to the smaller one's height and width."""
    height = min(one.shape[2], two.shape[2])
    width = min(one.shape[3], two.shape[3])
    return averaged(one, height, width), averaged(two, height, width)


def averaged_reference(maps: Tensor, height: int, width: int) -> Tensor:  # (B, C, H, W)
    """Definition: the mean over each part of a map, where the parts are as even as can be."""
    return F.adaptive_avg_pool2d(maps.to(_wide(maps)), (height, width))


def averaged(maps: Tensor, height: int, width: int) -> Tensor:  # (B, C, H, W)
    """The same in float32 or better, without a copy of the maps in that type; maps of this size
    come back as they are.
    """
    if maps.shape[2:] == (height, width):
        return maps
    if maps.shape[2] % height or maps.shape[3] % width:
        return averaged_reference(maps, height, width)
    return _Averaged.apply(maps, maps.shape[2] // height, maps.shape[3] // width)


class _Averaged(torch.autograd.Function):
    """The mean of each rectangle of this height and width: one pass each way."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, height: int, width: int) -> Tensor:
        ctx.size = (height, width)
        ctx.dtype = maps.dtype
        if _has_kernel(maps):
            rows = native.as_rows(maps)
            batch, tall, broad, channels = rows.shape
            out = rows.new_empty(
                batch, tall // height, broad // width, channels, dtype=torch.float32
            )
            native.call("means", rows.dtype, rows, out, *out.shape, height, width)
            return native.as_channels(out)
        parts = maps.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        return parts.mean((3, 5), dtype=_wide(maps))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        height, width = ctx.size
        if _has_kernel(grad, ctx.dtype) and not torch.is_grad_enabled():
            rows = native.as_rows(grad)
            batch, tall, broad, channels = rows.shape
            out = rows.new_empty(batch, tall * height, broad * width, channels, dtype=ctx.dtype)
            native.call("spread", ctx.dtype, rows, out, *rows.shape, height, width)
            return native.as_channels(out), None, None
        even = (grad / (height * width)).to(ctx.dtype)
        return F.interpolate(even, scale_factor=(height, width)), None, None


def _has_kernel(maps: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether there is a native form for maps of this type, or for gradients to this type."""
    narrow = dtype or maps.dtype
    fits = narrow in (torch.float32, torch.bfloat16) and (
        dtype is None or maps.dtype is torch.float32
    )
    return fits and pick_form(maps) == "native"


def _wide(maps: Tensor) -> torch.dtype:
    return torch.promote_types(maps.dtype, torch.float32)


class Projections(Part):
    """For each stage a 1×1 convolution from the student's channels to the teacher's, or nothing
    where they are as many.
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Identity() if own == given else nn.Conv2d(own, given, 1, bias=False)
            for own, given in pair.channels
        )

    def prepare(self, maps: Sequence[Tensor]) -> list[Tensor]:  # of (B, C, h, w)
        """The student's maps with the teacher's channels."""
        return [layer(each) for layer, each in zip(self.layers, maps, strict=True)]
