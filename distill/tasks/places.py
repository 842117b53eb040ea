"""What holds for any number of decisions an image: values are (B, *places), logits
(B, K, *places).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from synthesis_kernels.errors import EchosetError

VOID = -100
"""The label where nothing is asked or known, as torch's losses have it."""
PART = 2**24
"""Numbers that are looked at together."""
MOST_ROWS = 16 * 2**30
"""Bytes that labels or answers may take where there are several an image."""


def decide(logits: Tensor) -> Tensor:  # (B, K, *places) -> (B, *places)
    """The likeliest class at each place."""
    return logits.argmax(1)


def enlarge(
    logits: Tensor,  # (B, K, h, w), or of one decision an image (B, K)
    places: Sequence[int],
) -> Tensor:  # (B, K, *places)
    """Answers that were kept at a network's own size as answers at each place; 0 × 0 stay so."""
    if tuple(logits.shape[2:]) == tuple(places) or not logits.numel():
        return logits
    return F.interpolate(logits, tuple(places), mode="bilinear", align_corners=False)


def in_parts(count: int, shape: Sequence[int]) -> Iterator[slice]:
    """So many rows of this shape in parts of 64 MiB, as float32."""
    rows = max(PART // math.prod(shape), 1)
    for first in range(0, count, rows):
        yield slice(first, min(first + rows, count))


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
    labels = labels.long().unsqueeze(-1)
    # Not `one_hot`, whose whole numbers take twice the memory of these.
    rows = torch.zeros(*labels.shape[:-1], classes, device=labels.device)
    return rows.scatter_(-1, labels.clamp_min(0), (labels >= 0).float()).movedim(-1, 1)


def pool_rows(labels: Tensor, classes: int) -> Tensor:  # (N, *places) -> (N, K, *places)
    """`label_rows` of a pool, to make views of. Those of label maps are bytes, 255 for 1, and take
    a quarter of the memory; of more than `MOST_ROWS` bytes they are refused.
    """
    if labels.ndim == 1:
        return label_rows(labels, classes)
    size = labels.numel() * classes
    if size > MOST_ROWS:
        places = " × ".join(str(side) for side in labels.shape[1:])
        raise EchosetError(
            f"label maps of {len(labels):,} images, {places}, and {classes} classes would take "
            f"{size / 2**30:.1f} GiB of memory, and {MOST_ROWS / 2**30:.0f} are the most; take "
            "fewer images, or smaller ones, or the teacher's labels"
        )
    rows = labels.new_zeros((len(labels), classes, *labels.shape[1:]), dtype=torch.uint8)
    for label in range(classes):
        rows[:, label] = (labels == label).to(torch.uint8) * 255
    return rows


def most_answered(shape: Sequence[int], views: int = 1) -> int:
    """Images whose float32 answers (K, *places), to so many views of each, fit into `MOST_ROWS`
    bytes; at least one.
    """
    return max(MOST_ROWS // (4 * math.prod(shape) * views), 1)


def answers_fit(images: int, shape: Sequence[int], views: int = 1) -> bool:
    """Whether float32 answers (N, views, K, *places) take `MOST_ROWS` bytes at most, or are one an
    image.
    """
    return len(shape) == 1 or 4 * math.prod(shape) * images * views <= MOST_ROWS


def require_answers_fit(
    images: int, shape: Sequence[int], remedy: str, views: int = 1
) -> None:  # answers (N, views, K, *places)
    """Refuse answers at several places of an image that would take more than `MOST_ROWS` bytes."""
    if answers_fit(images, shape, views):
        return
    classes, *places = shape
    size = 4 * math.prod(shape) * images * views
    of_each = f", {views:,} to each," if views > 1 else ""
    raise EchosetError(
        f"answers to {images:,} images{of_each} would take {size / 2**30:.1f} GiB of memory: 4 "
        f"bytes for each of {classes:,} classes at each of {' × '.join(map(str, places))} places. "
        f"{MOST_ROWS / 2**30:.0f} GiB is the most, about {most_answered(shape, views):,} images; "
        f"{remedy}"
    )


def label_logits(labels: Tensor) -> Tensor:  # (B, K, *places) -> (B, K, *places)
    """Labels as logits, to compare decisions and divergences with; −∞ for every class at a place of
    a map that has no label.
    """
    logits = labels.clamp_min(1e-9).log()
    if labels.ndim == 2:
        return logits
    return logits.masked_fill(labels.amax(1, keepdim=True) == 0, -torch.inf)


def share_hit(decisions: Tensor, targets: Tensor) -> Tensor:  # (B, *places) twice -> ()
    """The share of what was asked for that was decided."""
    return (decisions == targets).sum() / (targets >= 0).sum().clamp_min(1)
