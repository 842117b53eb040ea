"""Images rotated, scaled and shifted, each by four numbers of its own, and resampled in one pass.

The numbers are a function of (image, view, seed), as those of `views` are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form
from synthesis_kernels.counter import as_places, start_place, uniforms

LANES = 4
"""Numbers drawn for an image: angle, zoom, and the shifts to the right and down."""


@dataclass(frozen=True)
class TurnPlan:
    """The most that may happen to an image; each number is drawn evenly between both ends."""

    rotate: float = 0.0
    """Largest angle in degrees, each way."""
    scale: float = 0.0
    """Largest zoom in or out, as a part of the image's size."""
    shift: float = 0.0
    """Largest shift, as a part of the image's shorter side."""


def turn_reference(
    images: Tensor,  # (B, C, H, W)
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64, or () for all
    plan: TurnPlan,
    seed: int,
) -> Tensor:  # (B, C, H, W) channels last
    """Definition: bilinear between pixels, black outside; differentiable in the images. Angles and
    zooms are those of pixels, whatever the sides.
    """
    # Places between pixels are too fine for half precision.
    wide = torch.promote_types(images.dtype, torch.float32)
    matrix = turn_matrices(images.shape[2:], index, view, plan, seed, wide)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    turned = F.grid_sample(images.to(wide), grid, align_corners=False)
    return turned.to(images.dtype).contiguous(memory_format=torch.channels_last)


def turn_matrices(
    sides: Sequence[int],  # height and width
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64, or () for all
    plan: TurnPlan,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # (B, 2, 3)
    """Where each image is read, as `torch.nn.functional.affine_grid` takes it."""
    height, width = sides
    short = min(height, width)
    draws = uniforms(index, view, seed, LANES).to(dtype) * 2 - 1
    angle = draws[0] * math.radians(plan.rotate)
    zoom = 1 + draws[1] * plan.scale
    # One side of the sampling grid is 2 long, hence the factor of two.
    right = draws[2] * 2 * plan.shift * (short / width)
    down = draws[3] * 2 * plan.shift * (short / height)
    cosine = angle.cos() * zoom
    sine = angle.sin() * zoom
    first_row = torch.stack([cosine, -sine * (height / width), right], 1)
    second_row = torch.stack([sine * (width / height), cosine, down], 1)
    return torch.stack([first_row, second_row], 1)


def turn(images: Tensor, index: Tensor, view: Tensor, plan: TurnPlan, seed: int) -> Tensor:
    """The images of (index, view) turned, as `turn_reference` defines it, in one pass.

    Where gradients are wanted, and in other types than float32, the definition itself runs.
    """
    differentiable = images.requires_grad and torch.is_grad_enabled()
    if differentiable or images.dtype is not torch.float32:
        return turn_reference(images, index, view, plan, seed)
    form = pick_form(images)
    if form == "reference":
        return turn_reference(images, index, view, plan, seed)
    index, view = as_places(index, view)
    rows = native.as_rows(images)
    out = torch.empty_like(rows)
    if form == "triton":
        from synthesis_kernels.triton_forms.turn import turn_rows

        turn_rows(rows, index, view, out, plan, seed)
        return native.as_channels(out)
    native.call(
        "turn",
        images.dtype,
        rows,
        index,
        view,
        view.ndim,
        out,
        *images.shape,
        math.radians(plan.rotate),
        float(plan.scale),
        float(plan.shift),
        start_place(seed),
    )
    return native.as_channels(out)
