"""Flow of the solution procedure (Yim et al. 2017): how one stage's channels go with the next
one's.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, einsum

from distill.batch import Batch, add_up
from distill.methods import Method
from distill.methods.shapes import Projections, same_side


def flow(first: Tensor, second: Tensor) -> Tensor:  # (B, C, h, w), (B, D, H, W) -> (B, C, D)
    """F₁F₂ᵀ/(hw), the larger map averaged down."""
    first, second = same_side(first, second)
    return einsum("bchw,bdhw->bcd", first, second) / first[0, 0].numel()


def fsp_loss(
    student: tuple[Tensor, Tensor],  # two stages' maps, with the teacher's channel counts
    teacher: tuple[Tensor, Tensor],
) -> Tensor:
    """Mean squared difference of the two flow matrices; blind to a permutation of pixels."""
    return F.mse_loss(flow(*student), flow(*teacher))


def _loss(batch: Batch) -> Tensor:
    own = pairwise(batch.prepared["Projections"])
    given = pairwise(batch.teacher_maps)
    flows = zip(own, given, strict=True)
    return add_up(fsp_loss(student, teacher) for student, teacher in flows)


FSP = Method("fsp", 50.0, frozenset({"maps"}), _loss, Projections, pairs=2, compares="never")
