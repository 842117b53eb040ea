"""What holds for any number of decisions an image: values are (B, *places), logits
(B, K, *places).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

VOID = -100
"""The label where nothing is asked or known, as torch's losses have it."""


def decide(logits: Tensor) -> Tensor:  # (B, K, *places) -> (B, *places)
    """The likeliest class at each place."""
    return logits.argmax(1)


def per_image(values: Tensor) -> Tensor:  # (B, *places) -> (B,)
    """The mean over an image's places."""
    return values if values.ndim == 1 else values.flatten(1).mean(1)


def count_decisions(labels: Tensor, classes: int) -> Tensor:  # (B, *places) -> (K,) int64
    """How many decisions there are for each class. It does not wait for the device."""
    flat = labels.flatten().long()
    known = (flat >= 0).long()
    return flat.new_zeros(classes).index_add_(0, flat.clamp_min(0), known)


def label_rows(labels: Tensor, classes: int) -> Tensor:  # (B, *places) -> (B, K, *places)
    """Labels as probabilities, 0 or 1; all 0 where there is none."""
    labels = labels.long()
    rows = F.one_hot(labels.clamp_min(0), classes).movedim(-1, 1).float()
    return rows * (labels >= 0).unsqueeze(1)


def share_hit(decisions: Tensor, targets: Tensor) -> Tensor:  # (B, *places) twice -> ()
    """The share of what was asked for that was decided."""
    return (decisions == targets).sum() / (targets != VOID).sum().clamp_min(1)
