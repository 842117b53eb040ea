"""What a set keeps of its teacher's answers to its own images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distill.models import Classifier
from distill.views import ask_to_keep, kept_shape, to_input

MOST = 2**30
"""Bytes that a set's answers may take where there is one at each of several places of an image."""
LARGEST = 65504
"""float16 ends there; a logit beyond it would become infinite."""
AT_ONCE = 500
"""Images that are asked for at once."""


def logits_to_keep(
    teacher: Classifier,
    images: Tensor,  # (B, C, H, W) uint8
    logits: Tensor,  # (B, K, *places) float32, the answers to them
    total: int,
) -> Tensor:  # (B, K) float32, or (B, K, h, w) float16
    """The answers as a set of so many images keeps them: one decision an image as it is, maps at
    the network's own size. Maps of more than `MOST` bytes are left out, as 0 × 0: whoever needs
    them asks again.
    """
    if logits.ndim == 2:
        return logits.clamp(-LARGEST, LARGEST)
    classes, *places = kept_shape(teacher)
    if 2 * math.prod((classes, *places)) * total > MOST:
        return logits[:, :, :0, :0].half()
    rows = [logits.new_zeros((0, classes, *places), dtype=torch.float16)]
    for part in images.split(AT_ONCE):
        answers = ask_to_keep(teacher, to_input(part), torch.float32)
        rows.append(answers.clamp(-LARGEST, LARGEST).half())
    return torch.cat(rows)
