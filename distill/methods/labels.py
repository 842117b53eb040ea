"""Cross-entropy to labels: the data's own, or the teacher's decisions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distill.batch import Batch, add_up
from distill.methods import Method


def label_loss(
    logits: list[Tensor],  # n of (B, K, *places)
    labels: Tensor,  # (B, K, *places)
) -> Tensor:
    """Σᵢ mean CE(labels, zᵢ) over all networks that learn."""
    return add_up(F.cross_entropy(each, labels) for each in logits)


def _loss(batch: Batch) -> Tensor:
    return label_loss(batch.everyone, batch.labels)


LABELS = Method("labels", 1.0, frozenset(), _loss, compares="maps")
