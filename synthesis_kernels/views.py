"""Training views of a pool: crop, flip, cutout, mixup and cutmix in one gather, and its gradient.

Everything random is a function of (image, view, seed), see `counter`, so any batch can be made
again at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form
from synthesis_kernels.counter import as_places, start_place, uniforms, uniforms_reference
from synthesis_kernels.errors import EchosetError

LANES = 8
"""Numbers drawn for a view: row, column, mirror, cutout row, cutout column, mixup or not, partner,
and share.
"""
PASTE = 1_000_003
"""Cutmix draws from a stream of its own, this far from the seed."""
PASTE_LANES = 6
"""Cutmix or not, whose pixels, the centre's row and column, one that is left out, and the area."""
KINDS = (torch.uint8, torch.float32, torch.float64, torch.bfloat16)
"""Pools that there is a kernel for."""


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
    cutmix: float = 0.0
    """Part of the views in which, last of all, a square of another image is pasted, of any area."""


def views_reference(
    pool: Tensor,  # (N, C, H, W) uint8, or float in [0, 1]
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64, or () for all
    plan: ViewPlan,
    seed: int,
) -> Tensor:  # (B, C, H, W) float in [0, 1], channels last; float32 of a uint8 pool
    """Definition, image by image and step by step; differentiable where the pool is float."""
    height, width = pool.shape[2:]
    images = []
    paste_draws = uniforms_reference(index, view, seed + PASTE, PASTE_LANES).T
    for place, draws in enumerate(uniforms_reference(index, view, seed, LANES).T):
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
        pasted, donor, middle_row, middle_column, _, area = paste_draws[place]
        if plan.cutmix and pasted < plan.cutmix:
            near_rows = _near(middle_row, area, height)[:, None]
            near_columns = _near(middle_column, area, width)
            image = torch.where(
                near_rows & near_columns, _to_unit(pool[_whole(donor, len(pool))]), image
            )
        images.append(image)
    return torch.stack(images).contiguous(memory_format=torch.channels_last)


def views(pool: Tensor, index: Tensor, view: Tensor, plan: ViewPlan, seed: int) -> Tensor:
    """The views named by (index, view), as `views_reference` defines them, in one pass over what
    they need.

    On a GPU nobody waits to hear of an index outside the pool: its view is NaN.
    """
    if pool.dtype is not torch.uint8 and not pool.is_floating_point():
        raise EchosetError(f"a pool of views is uint8 or float, not {pool.dtype}")
    form = pick_form(pool) if pool.dtype in KINDS else "reference"
    if form == "reference":
        return _gather(pool, index, view, plan, seed)
    index, view = as_places(index, view)
    if pool.requires_grad and torch.is_grad_enabled():
        return _Views.apply(pool, index, view, plan, seed, form)
    return _forward(pool, index, view, plan, seed, form)


def pastes(
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64, or () for all
    shape: torch.Size,  # of the pool, (N, C, H, W)
    cutmix: float,
    seed: int,
) -> tuple[Tensor, Tensor]:  # (B,) int64, (B, H, W) bool
    """Cutmix: whose pixels are pasted, and where; the pasted share is uniform, as in its paper."""
    draws = uniforms(index, view, seed + PASTE, PASTE_LANES)
    pasted, partner = _partners(draws, shape[0], cutmix)
    rows = _near(draws[2], draws[5], shape[2])[:, :, None]
    columns = _near(draws[3], draws[5], shape[3])[:, None, :]
    return partner, rows & columns & pasted[:, None, None]


def paste_partners(
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64, or () for all
    count: int,
    cutmix: float,
    seed: int,
) -> tuple[Tensor, Tensor]:  # (B,) bool, (B,) int64
    """Cutmix: which views something is pasted upon, and of which of `count` images."""
    return _partners(uniforms(index, view, seed + PASTE, PASTE_LANES), count, cutmix)


def _partners(draws: Tensor, count: int, cutmix: float) -> tuple[Tensor, Tensor]:
    return draws[0] < cutmix, _whole(draws[1], count)


def _near(centre: Tensor, area: Tensor, side: int) -> Tensor:  # (*), (*) -> (*, side) bool
    """Along one side, the pixels of a square of this part of the area around a centre anywhere."""
    places = torch.arange(side, device=area.device) + 0.5
    length = area.sqrt() * side
    return (places - (centre * side)[..., None]).abs() * 2 <= length[..., None]


class _Views(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pool: Tensor, index: Tensor, view: Tensor, plan: ViewPlan, seed: int, form: str
    ) -> Tensor:
        ctx.save_for_backward(index, view)
        ctx.settings = (pool.shape, plan, seed, form)
        return _forward(pool, index, view, plan, seed, form)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, view = ctx.saved_tensors
        shape, plan, seed, form = ctx.settings
        out = _room(shape[0], shape, grad)
        if form == "triton":
            from synthesis_kernels.triton_forms.views import spread_views

            spread_views(grad, index, view, out, plan, seed)
        else:
            _run("views_backward", grad, index, view, out, shape, plan, seed)
        return out, None, None, None, None, None


def _forward(
    pool: Tensor, index: Tensor, view: Tensor, plan: ViewPlan, seed: int, form: str
) -> Tensor:
    out = _room(len(index), pool.shape, pool)
    if form == "triton":
        from synthesis_kernels.triton_forms.views import gather_views

        gather_views(pool, index, view, out, plan, seed)
        return out
    name = "views_of_bytes" if pool.dtype is torch.uint8 else "views"
    if _run(name, pool, index, view, out, pool.shape, plan, seed):
        raise IndexError(f"views of images {int(index.min())} to {int(index.max())} of {len(pool)}")
    return out


def _room(count: int, shape: torch.Size, like: Tensor) -> Tensor:
    """Memory for this many images, float32 where `like` is of bytes."""
    dtype = torch.float32 if like.dtype is torch.uint8 else like.dtype
    size = (count, *shape[1:])
    return torch.empty(size, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def _run(
    name: str,
    source: Tensor,
    index: Tensor,
    view: Tensor,
    out: Tensor,
    shape: torch.Size,
    plan: ViewPlan,
    seed: int,
) -> int:
    """The native form; 1 where an index is outside the pool."""
    images, *sides = shape
    places = (start_place(seed), start_place(seed + PASTE))
    return native.call(
        name,
        out.dtype,
        native.Memory(source),  # read through its strides
        *source.stride(),
        index,
        view,
        view.ndim,
        out.permute(0, 2, 3, 1),
        len(index),
        images,
        *sides,
        plan.crop,
        plan.flip,
        plan.cutout,
        float(plan.mixup),
        float(plan.cutmix),
        *places,
    )


def _gather(pool: Tensor, index: Tensor, view: Tensor, plan: ViewPlan, seed: int) -> Tensor:
    """In torch operations; differentiable in a float pool."""
    count = len(index)
    channels, height, width = pool.shape[1:]
    draws = uniforms(index, view, seed, LANES)
    _, _, mirror, cut_row, cut_column, blend, partner, share = draws
    down, right = (shift[:, None, None] for shift in _shifts(draws, plan))
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
    if plan.cutmix:
        donor, box = pastes(index, view, pool.shape, plan.cutmix, seed)
        out = torch.where(box[:, None], _to_unit(pool[donor]), out)
    return out.contiguous(memory_format=torch.channels_last)


def shifts(
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64, or () for all
    plan: ViewPlan,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:  # (B,) int64, (B,) int64, (B,) bool
    """How many pixels further down and further right an image is read, and whether it is mirrored
    before.
    """
    draws = uniforms(index, view, seed, LANES)
    return *_shifts(draws, plan), plan.flip & (draws[2] < 0.5)


def _shifts(draws: Tensor, plan: ViewPlan) -> tuple[Tensor, Tensor]:  # (LANES, B) -> (B,) twice
    """Pixels down and to the right."""
    down, right = (_whole(draw, 2 * plan.crop + 1) - plan.crop for draw in draws[:2])
    return down, right


def _band(draw: Tensor, side: int, plan: ViewPlan) -> Tensor:  # (B,) -> (B, side) bool
    start = _whole(draw, side) - plan.cutout // 2
    place = torch.arange(side, device=draw.device)
    return (place >= start[:, None]) & (place < start[:, None] + plan.cutout)


def _whole(draw: Tensor, count: int) -> Tensor:
    """A number in [0, 1) as one of `count` integers; the product may round up to `count` itself."""
    return (draw * count).long().clamp_max(count - 1)


def _to_unit(pixels: Tensor) -> Tensor:
    if pixels.dtype is not torch.uint8:
        return pixels
    # By a tensor: CUDA would multiply by a number's reciprocal, and differ in the last bit from the
    # other forms.
    return pixels.float() / pixels.new_full((), 255, dtype=torch.float32)
