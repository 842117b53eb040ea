"""Cross-entropy to labels: the data's own, or the teacher's decisions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distill.batch import Batch, add_up
from distill.methods import Method


def label_loss(
    logits: list[Tensor],  # n of (B, K, *places)
    labels: Tensor,  # (B, K, *places)
    total: Tensor | None = None,  # () as `known_loss` takes it
) -> Tensor:
    """Σᵢ mean CE(labels, zᵢ) over all networks that learn."""
    return add_up(known_loss(each, labels, total=total) for each in logits)


def known_loss(
    logits: Tensor,  # (B, K, *places)
    labels: Tensor,  # (B, K, *places)
    weights: Tensor | None = None,  # (K,) of the classes
    total: Tensor | None = None,  # () what the labels of maps are taken to sum to
) -> Tensor:
    """Mean CE(labels, z) over the decisions that have a label. Of label maps a row of zeros is
    none, and one that sums to less than one counts less.
    """
    if logits.ndim == 2:
        return F.cross_entropy(logits, labels, weights)
    shares = labels if weights is None else labels * weights.view(-1, 1, 1)
    total = shares.sum().clamp_min(1) if total is None else total
    return F.cross_entropy(logits, labels, weights, reduction="sum") / total


def _loss(batch: Batch) -> Tensor:
    total = None if batch.known_places is None else batch.known_places * len(batch.labels)
    return label_loss(batch.all_logits, batch.labels, total)


LABELS = Method("labels", 1.0, frozenset(), _loss, compares="maps")
