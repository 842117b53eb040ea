"""What a student sees of a stored image: its v-th view, a function of image, v and seed.

In order: mixup, shift, mirror and cutout (one kernel), rotation and scale (another), RandAugment,
cutmix (in the first kernel where nothing comes between), erasing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distill.options import ViewOptions
from synthesis_kernels.counter import uniforms
from synthesis_kernels.turn import TurnPlan, turn
from synthesis_kernels.views import LANES, ViewPlan, paste_partners, pastes, views

# Each part draws from a stream of its own, so that switching one on leaves the others as they were.
TURN = 1
ERASE = 2_000_003
OPERATIONS_STREAM = 3_000_017


def make_views(
    pool: Tensor,  # (N, C, H, W) uint8
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64, or () for all
    options: ViewOptions,
    seed: int,
) -> Tensor:  # (B, C, H, W) float32 in [0, 1], channels last
    """View `view[b]` of image `index[b]`: always the same one, in whatever batch it is asked
    for.
    """
    return _make(pool, index, view, options, seed, maps=False)


def view_maps(
    rows: Tensor,  # (N, K, H, W) a row a pixel: floats in [0, 1], or bytes of 0 and 255
    index: Tensor,  # (B,)
    view: Tensor,  # (B,) or () for all
    options: ViewOptions,
    seed: int,
) -> Tensor:  # (B, K, H, W) float32
    """Label maps moved, blended and pasted as `make_views` does it with their images; all zeros
    where a view shows nothing of an image.
    """
    return _make(rows, index, view, options, seed, maps=True)


def _make(
    pool: Tensor, index: Tensor, view: Tensor, options: ViewOptions, seed: int, maps: bool
) -> Tensor:
    turned = bool(options.rotate or options.scale)
    # Whole pixels shift in the gather; turned views are resampled anyway, so there the shift is
    # part of that.
    side = min(pool.shape[2:])
    crop = 0 if turned else round(options.shift * side)
    cutout = round(options.cutout * side)
    pasted_late = bool(options.cutmix and (turned or options.operations))
    cutmix = 0.0 if pasted_late else options.cutmix
    plan = ViewPlan(crop, options.flip, cutout, options.mixup, cutmix)
    images = views(pool, index, view, plan, seed)
    if turned:
        most = TurnPlan(options.rotate, options.scale, options.shift)
        images = turn(images, index, view, most, seed + TURN)
    if options.operations:
        from distill.data.operations import MOVING, OPERATIONS, randaugment

        draws = uniforms(index, view, seed + OPERATIONS_STREAM, 3 * options.operations)
        draws = draws.view(options.operations, 3, -1)
        images = randaugment(images, draws, options.strength, MOVING if maps else OPERATIONS)
    if pasted_late:
        partner, box = pastes(index, view, pool.shape, options.cutmix, seed)
        pasted = pool[partner].float() / (255 if pool.dtype is torch.uint8 else 1)
        images = torch.where(box[:, None], pasted, images)
    if options.erase:
        draws = uniforms(index, view, seed + ERASE, 5)
        # Where the first draw says that there is a box, it also says how large: 2 to 33 % of the
        # area, as published.
        area = 0.02 + 0.31 * draws[0] / options.erase
        height, width = images.shape[2:]
        box = _boxes(draws[1:], area, height, width)
        box &= (draws[0] < options.erase)[:, None, None]
        filling = torch.zeros_like(images) if maps else _noise(index, view, seed + ERASE, images)
        images = torch.where(box[:, None], filling, images)
    return images.contiguous(memory_format=torch.channels_last)


def view_labels(
    labels: Tensor,  # (N, K) one row an image of the pool
    index: Tensor,  # (B,)
    view: Tensor,  # (B,)
    pool: Tensor,
    options: ViewOptions,
    seed: int,
) -> Tensor:  # (B, K)
    """The pool's labels blended as `make_views` blends its images."""
    rows = labels[index]
    if options.mixup:
        blend, partner, share = _blends(index, view, len(pool), options.mixup, seed)
        blended = torch.lerp(labels[partner], rows, share[:, None])
        rows = torch.where(blend[:, None], blended, rows)
    if options.cutmix:
        partner, box = pastes(index, view, pool.shape, options.cutmix, seed)
        share = box.float().mean((1, 2))
        rows = torch.lerp(rows, labels[partner], share[:, None])
    return rows


def shows_only(
    allowed: Tensor,  # (N,) bool
    index: Tensor,  # (B,)
    view: Tensor,  # (B,)
    options: ViewOptions,
    seed: int,
) -> Tensor:  # (B,) bool
    """Whether a view shows nothing but these images of the pool, with those that are blended in."""
    fits = allowed[index]
    if options.mixup:
        blend, partner, _ = _blends(index, view, len(allowed), options.mixup, seed)
        fits = fits & (allowed[partner] | ~blend)
    if options.cutmix:
        pasted, partner = paste_partners(index, view, len(allowed), options.cutmix, seed)
        fits = fits & (allowed[partner] | ~pasted)
    return fits


def _blends(
    index: Tensor,  # (B,)
    view: Tensor,  # (B,)
    count: int,
    mixup: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:  # (B,) bool, (B,) int64, (B,) in [0, 1)
    """Mixup: which views are blended, with which of `count` images, and their own share."""
    draws = uniforms(index, view, seed, LANES)
    partner = (draws[6] * count).long().clamp_max(count - 1)
    return draws[5] < mixup, partner, draws[7]


def _boxes(
    draws: Tensor,  # (≥ 3, B) in [0, 1): centre's row and column, ratio of sides
    area: Tensor,  # (B,) in [0, 1)
    height: int,
    width: int,
) -> Tensor:  # (B, H, W) bool
    """A rectangle of about this part of the image's area around a centre anywhere, with sides up to
    3.3 : 1.
    """
    ratio = (draws[2] * 2 - 1).mul(math.log(3.3) / 2).exp()
    tall = (area.sqrt() * ratio).clamp_max(1) * height
    wide = (area.sqrt() / ratio).clamp_max(1) * width
    y = torch.arange(height, device=area.device) + 0.5
    x = torch.arange(width, device=area.device) + 0.5
    rows = (y - (draws[0] * height)[:, None]).abs() * 2 <= tall[:, None]
    columns = (x - (draws[1] * width)[:, None]).abs() * 2 <= wide[:, None]
    return rows[:, :, None] & columns[:, None, :]


def _noise(
    index: Tensor,  # (B,)
    view: Tensor,  # (B,)
    seed: int,
    like: Tensor,  # (B, C, H, W)
) -> Tensor:  # (B, C, H, W) in [0, 1)
    """Uniform noise that belongs to (image, view), as everything else does."""
    numbers = uniforms(index, view, seed + 1000, like[0].numel())
    return numbers.T.reshape(like.shape)
