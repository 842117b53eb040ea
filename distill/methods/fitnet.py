"""FitNets (Romero et al. 2015): the student's feature maps, brought to the teacher's shape, should
equal the teacher's.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distill.batch import Batch, add_up
from distill.methods import Method
from distill.methods.shapes import Projections, same_side


def fitnet_loss(
    student: Tensor,  # (B, C, h, w), after an adapter where its channels differed
    teacher: Tensor,  # (B, C, H, W)
) -> Tensor:
    """mean (A_S − A_T)², after averaging the larger map down to the smaller one's size."""
    return F.mse_loss(*same_side(student, teacher))


def _loss(batch: Batch) -> Tensor:
    pairs = zip(batch.prepared["Projections"], batch.teacher_maps, strict=True)
    total = add_up(fitnet_loss(student, teacher) for student, teacher in pairs)
    return total / len(batch.teacher_maps)


FITNET = Method("fitnet", 100.0, frozenset({"maps"}), _loss, Projections, compares="never")
