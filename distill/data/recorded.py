"""Views as numbers, for who makes them without this project: a matrix that turns, shifts and
mirrors an image, and a rectangle of another image pasted upon it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.data.augment import TURN
from distill.options import ViewOptions
from synthesis_kernels.turn import TurnPlan, turn_matrices
from synthesis_kernels.views import ViewPlan, pastes, shifts


def is_recorded(options: ViewOptions) -> bool:
    """Whether matrix and rectangle say everything about such views."""
    others = (options.cutout, options.mixup, options.erase, options.operations)
    return not any(others)


def record_views(
    pool: Tensor,  # (N, C, H, W)
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64
    options: ViewOptions,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:  # (B, 2, 3) float32, (B,) int32, (B, 4) int16
    """What `make_views` does to these images: matrices as `torch.nn.functional.affine_grid` takes
    them; whose pixels are pasted; and first row, row after the last, first column, column after
    the last of the rectangle, all 0 where there is none.
    """
    turned = bool(options.rotate or options.scale)
    crop = 0 if turned else round(options.shift * min(pool.shape[2:]))
    matrices = _mirror_and_shift(index, view, pool.shape, crop, options.flip, seed)
    if turned:
        plan = TurnPlan(options.rotate, options.scale, options.shift)
        turns = turn_matrices(pool.shape[2:], index, view, plan, seed + TURN)
        matrices = matrices[:, :, :2] @ turns
    partner, box = pastes(index, view, pool.shape, options.cutmix, seed)
    rows = _ends(box.any(2))
    columns = _ends(box.any(1))
    return matrices, partner.int(), torch.cat([rows, columns], 1).short()


def _mirror_and_shift(
    index: Tensor, view: Tensor, shape: torch.Size, crop: int, flip: bool, seed: int
) -> Tensor:  # (B, 2, 3)
    down, right, mirrored = shifts(index, view, ViewPlan(crop, flip), seed)
    matrices = torch.zeros(len(index), 2, 3)
    matrices[:, 0, 0] = torch.where(mirrored, -1.0, 1.0)
    matrices[:, 1, 1] = 1
    # One side of the sampling grid is 2 long.
    matrices[:, 0, 2] = right * 2 / shape[3]
    matrices[:, 1, 2] = down * 2 / shape[2]
    return matrices


def _ends(inside: Tensor) -> Tensor:  # (B, side) bool -> (B, 2) int64
    """The first place inside, and the one after the last."""
    first = inside.int().argmax(1)
    return torch.stack([first, first + inside.sum(1)], 1)
