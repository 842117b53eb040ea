"""Similarity-preserving distillation (Tung & Mori 2019): images that are alike to the teacher
should be to the student.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.batch import Batch
from distill.methods import Method


def similarity(features: Tensor) -> Tensor:  # (B, …) -> (B, B)
    """Row-normalised QQᵀ of the flattened features."""
    flat = features.flatten(1)
    gram = flat @ flat.T
    # An image without any feature is like no other; scaling its row to length one would blow up its
    # gradient.
    live = gram.diagonal()[:, None] > 1e-12
    return F.normalize(torch.where(live, gram, 0.0), dim=1)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:  # (B, …), (B, …)
    """mean (G_S − G_T)² over the batch's pairs; blind to rotations and to the scale of the
    features.
    """
    return F.mse_loss(similarity(student), similarity(teacher))


def _loss(batch: Batch) -> Tensor:
    return similarity_loss(batch.maps[-1], batch.teacher_maps[-1])


SP = Method("sp", 3000.0, frozenset({"maps"}), _loss)
