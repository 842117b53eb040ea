"""What holds for any number of decisions an image: values are (B, *places), logits
(B, K, *places).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def decide(logits: Tensor) -> Tensor:  # (B, K, *places) -> (B, *places)
    """The likeliest class at each place."""
    return logits.argmax(1)


def per_image(values: Tensor) -> Tensor:  # (B, *places) -> (B,)
    """The mean over an image's places."""
    return values if values.ndim == 1 else values.flatten(1).mean(1)


def count_decisions(labels: Tensor, classes: int) -> Tensor:  # (B, *places) -> (K,) int64
    """How many decisions there are for each class. It does not wait for the device."""
    flat = labels.flatten().long()
    return flat.new_zeros(classes).index_add_(0, flat, flat.new_ones(()).expand(len(flat)))


def label_rows(labels: Tensor, classes: int) -> Tensor:  # (B, *places) -> (B, K, *places)
    """Labels as probabilities, 0 or 1."""
    return F.one_hot(labels.long(), classes).movedim(-1, 1).float()
