"""Relational knowledge distillation (Park et al. 2019): distances between images, and angles
between triples of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.methods import Method


def distances(embedding: Tensor) -> Tensor:  # (B, D) -> (B, B)
    """Pairwise Euclidean distances in units of their mean over different images."""
    # Distances don't change, and far from the origin float32 would lose them.
    embedding = embedding - embedding.mean(0)
    gram = embedding @ embedding.T
    square = gram.diagonal()
    apart = (square[:, None] + square[None] - 2 * gram).clamp_min(0)
    different = ~torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
    # √ has no gradient at zero: equal images, and each with itself, stay out of it.
    far = different & (apart > 1e-12)
    distance = torch.where(far, apart, 1.0).sqrt() * far
    return distance / (distance.sum() / different.sum()).clamp_min(1e-12)


def angles(embedding: Tensor) -> Tensor:  # (B, D) -> (B, B, B)
    """cos ∠(i, j, k) at every image j's place: unit vectors from j to i and to k, multiplied."""
    toward = embedding[None] - embedding[:, None]  # [j, i] points from j to i
    # Equal images have no direction between them, and scaling so short a vector to length one would
    # blow up its gradient.
    far = toward.square().sum(2, keepdim=True) > 1e-12
    toward = F.normalize(torch.where(far, toward, 0.0), dim=2)
    return toward @ toward.transpose(1, 2)


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:  # (B, D), (B, E)
    """RKD-D: smooth L1 of mean-scaled distances; blind to shifts, rotations and the scale of the
    space.
    """
    return F.smooth_l1_loss(distances(student), distances(teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:  # (B, D), (B, E)
    """RKD-A: smooth L1 of the angles' cosines."""
    return F.smooth_l1_loss(angles(student), angles(teacher))


def relational_loss(student: Tensor, teacher: Tensor) -> Tensor:  # (B, D), (B, E)
    """RKD-DA: 25·RKD-D + 50·RKD-A."""
    return 25 * distance_loss(student, teacher) + 50 * angle_loss(student, teacher)


def _method(name: str, weight: float, loss: Callable[[Tensor, Tensor], Tensor]) -> Method:
    """The method that compares embeddings by this loss."""
    return Method(
        name,
        weight,
        frozenset({"embedding"}),
        lambda batch: loss(batch.student_taps.embedding, batch.teacher_embedding),
    )


RKD = _method("rkd", 1.0, relational_loss)
RKD_D = _method("rkd-d", 25.0, distance_loss)
RKD_A = _method("rkd-a", 50.0, angle_loss)
