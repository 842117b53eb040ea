"""What a set keeps of its teacher's answers to its own images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distill.models import Classifier
from distill.views import ask_to_keep, at_once, kept_shape, to_input

MOST = 2**30
"""Bytes that a set's answers may take where there is one at each of several places of an image."""
LARGEST = 65504
"""float16 ends there; a logit beyond it would become infinite."""


def logits_to_keep(
    teacher: Classifier,
    images: Tensor,  # (B, C, H, W) uint8
    logits: Tensor,  # (B, K, *places) float32, the answers to them
    total: int,
) -> Tensor:  # (B, K), or (B, K, h, w), float16
    """The answers as a set of so many images keeps them: one decision an image as it is, maps at
    the network's own size. Maps of more than `MOST` bytes are left out, as 0 × 0: whoever needs
    them asks again.
    """
    if logits.ndim == 2:
        return _to_half(logits)
    shape = kept_shape(teacher)
    small = None
    if shape != tuple(logits.shape[1:]) and _fits(shape, total):
        small = _ask_small(teacher, images, shape)
    if small is not None:
        return small
    return _to_half(logits) if _fits(logits.shape[1:], total) else logits[:, :, :0, :0].half()


def _fits(shape: Sequence[int], total: int) -> bool:
    return 2 * math.prod(shape) * total <= MOST


def _ask_small(teacher: Classifier, images: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Answers at the network's own size; None where it does not enlarge all of them alike."""
    rows = [torch.zeros(0, *shape, dtype=torch.float16, device=images.device)]
    for part in images.split(at_once(images)):
        answers = ask_to_keep(teacher, to_input(part), torch.float32)
        if tuple(answers.shape[1:]) != shape:
            return None
        rows.append(_to_half(answers))
    return torch.cat(rows)


def _to_half(logits: Tensor) -> Tensor:
    return logits.clamp(-LARGEST, LARGEST).half()
