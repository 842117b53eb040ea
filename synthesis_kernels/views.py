"""Training views of a stored pool: crop, flip, cutout, mixup and normalisation in one gather.

Everything random is a function of (image, view, seed), see `counter`, so any batch can be made
again at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form
from synthesis_kernels.counter import uniforms
from synthesis_kernels.errors import EchosetError

LANES = 8
"""Numbers drawn for a view: row, column, mirror, cutout row, cutout column, mixup or not, partner,
and share.
"""


@dataclass(frozen=True)
class ViewPlan:
    """What may happen to an image."""

    crop: int = 0
    """Largest shift in pixels, each way; black comes in from outside."""
    flip: bool = False
    """Mirror half of the views."""
    cutout: int = 0
    """Side of a square made black."""
    mixup: float = 0.0
    """Part of the views blended with another image of the pool."""


def views_reference(
    pool: Tensor,  # (N, C, H, W) uint8, or float in [0, 1]
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64
    plan: ViewPlan,
    seed: int,
) -> Tensor:  # (B, C, H, W) float32 in [0, 1], channels last
    """Definition, image by image and step by step; differentiable where the pool is float."""
    height, width = pool.shape[2:]
    images = []
    for place, draws in enumerate(uniforms(index, view, seed, LANES).T):
        row, column, mirror, cut_row, cut_column, blend, partner, share = draws
        image = _to_unit(pool[index[place]])
        if plan.mixup and blend < plan.mixup:
            other = _to_unit(pool[_whole(partner, len(pool))])
            image = torch.lerp(other, image, share.to(image.dtype))
        top = _whole(row, 2 * plan.crop + 1)
        left = _whole(column, 2 * plan.crop + 1)
        padded = F.pad(image, [plan.crop] * 4)
        image = padded[:, top : top + height, left : left + width]
        if plan.flip and mirror < 0.5:
            image = image.flip(-1)
        if plan.cutout:
            top = _whole(cut_row, height) - plan.cutout // 2
            left = _whole(cut_column, width) - plan.cutout // 2
            rows = slice(max(top, 0), max(top + plan.cutout, 0))
            columns = slice(max(left, 0), max(left + plan.cutout, 0))
            keep = torch.ones_like(image)
            keep[:, rows, columns] = 0
            image = image * keep
        images.append(image)
    return torch.stack(images).contiguous(memory_format=torch.channels_last)


def views(pool: Tensor, index: Tensor, view: Tensor, plan: ViewPlan, seed: int) -> Tensor:
    """The views named by (index, view), as `views_reference` defines them, in one pass over what
    they need.
    """
    if pool.dtype is not torch.uint8 and not pool.is_floating_point():
        raise EchosetError(f"a pool of views is uint8 or float, not {pool.dtype}")
    draws = uniforms(index, view, seed, LANES)
    form = pick_form(pool) if pool.dtype is torch.uint8 else "reference"
    if form == "native":
        return _native(pool.contiguous(), index, draws.contiguous(), plan)
    if form == "triton":
        from synthesis_kernels.triton_forms.views import gather_views

        return gather_views(pool.contiguous(), index, draws, plan)
    return _gather(pool, index, draws, plan)


def _gather(pool: Tensor, index: Tensor, draws: Tensor, plan: ViewPlan) -> Tensor:
    """In torch operations; differentiable in a float pool."""
    count = len(index)
    channels, height, width = pool.shape[1:]
    row, column, mirror, cut_row, cut_column, blend, partner, share = draws
    down = (_whole(row, 2 * plan.crop + 1) - plan.crop)[:, None, None]
    right = (_whole(column, 2 * plan.crop + 1) - plan.crop)[:, None, None]
    y = torch.arange(height, device=pool.device)[None, :, None] + down  # (B, H, 1)
    x = torch.arange(width, device=pool.device)[None, None, :]
    if plan.flip:
        x = torch.where((mirror < 0.5)[:, None, None], width - 1 - x, x)
    x = x + right  # (B, 1, W)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)  # (B, H, W)
    if plan.cutout:
        cut_rows = _band(cut_row, height, plan)[:, :, None]
        cut_columns = _band(cut_column, width, plan)[:, None, :]
        inside = inside & ~(cut_rows & cut_columns)
    pixel = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    place = pixel.flatten(1)[:, None].expand(count, channels, -1)  # (B, C, H·W)
    flat = pool.flatten(2)
    out = _to_unit(flat[index].gather(2, place))
    if plan.mixup:
        other = _to_unit(flat[_whole(partner, len(pool))].gather(2, place))
        blended = torch.lerp(other, out, share[:, None, None].to(out.dtype))
        out = torch.where((blend < plan.mixup)[:, None, None], blended, out)
    out = (out * inside.flatten(1)[:, None]).view(count, channels, height, width)
    return out.contiguous(memory_format=torch.channels_last)


def _band(draw: Tensor, side: int, plan: ViewPlan) -> Tensor:  # (B,) -> (B, side) bool
    start = _whole(draw, side) - plan.cutout // 2
    place = torch.arange(side, device=draw.device)
    return (place >= start[:, None]) & (place < start[:, None] + plan.cutout)


def _native(pool: Tensor, index: Tensor, draws: Tensor, plan: ViewPlan) -> Tensor:
    if len(index) and not 0 <= index.min() <= index.max() < len(pool):
        raise IndexError(f"views of images {int(index.min())} to {int(index.max())} of {len(pool)}")
    count = len(index)
    channels, height, width = pool.shape[1:]
    index = index.long().contiguous()
    out = torch.empty(count, height, width, channels)
    sizes = (len(pool), count, channels, height, width, plan.crop, plan.flip, plan.cutout)
    native.call("views", torch.float32, pool, index, draws, out, *sizes, float(plan.mixup))
    return out.permute(0, 3, 1, 2)


def _whole(draw: Tensor, count: int) -> Tensor:
    """A number in [0, 1) as one of `count` integers; the product may round up to `count` itself."""
    return (draw * count).long().clamp_max(count - 1)


def _to_unit(pixels: Tensor) -> Tensor:
    if pixels.dtype is not torch.uint8:
        return pixels
    # By a tensor: CUDA would multiply by a number's reciprocal, and differ in the last bit from the
    # other forms.
    return pixels.float() / pixels.new_full((), 255, dtype=torch.float32)
