"""What a student sees of a stored image: its v-th view, a function of image, v and seed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.options import ViewOptions
from synthesis_kernels.counter import uniforms
from synthesis_kernels.views import ViewPlan, views


def make_views(
    pool: Tensor,  # (N, C, H, W) uint8
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64
    options: ViewOptions,
    seed: int,
) -> Tensor:  # (B, C, H, W) float32 in [0, 1], channels last
    """View `view[b]` of image `index[b]`: always the same one, in whatever batch it is asked for."""
    turned = bool(options.rotate or options.scale)
    # Whole pixels shift in the gather; turned views are resampled anyway, so there the shift is part of that.
    crop = 0 if turned else round(options.shift * pool.shape[-1])
    plan = ViewPlan(crop, options.flip, round(options.cutout * pool.shape[-1]), options.mixup)
    images = views(pool, index, view, plan, seed)
    return _turn(images, uniforms(index, view, seed + 1, 4), options) if turned else images


def _turn(images: Tensor, draws: Tensor, options: ViewOptions) -> Tensor:
    """Rotate, scale and shift each image by its own four numbers from [0, 1)."""
    draws = draws * 2 - 1
    angle, zoom = draws[0] * math.radians(options.rotate), 1 + draws[1] * options.scale
    # One side of the sampling grid is 2 long, hence the factor of two.
    right, down = draws[2] * 2 * options.shift, draws[3] * 2 * options.shift
    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    matrix = torch.stack([torch.stack([cosine, -sine, right], 1), torch.stack([sine, cosine, down], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).contiguous(memory_format=torch.channels_last)
