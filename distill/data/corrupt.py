"""Damage done to labelled images on purpose, as the study of distillation beyond compression
defines it (ICPR 2020).

Everything follows from a seed, and says what it came to: `print(add_label_noise(data, 10, 0.4,
seed=0).report)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.data.images import Images
from distill.tasks import USUAL, find_task
from distill.tasks.places import VOID, count_decisions
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from distill.tasks import Task

SMALLEST = 1 / 20
"""The last class's part of the first one's images under imbalance: 250 of 5,000 in the study."""


@dataclass(frozen=True)
class Corrupted:
    """Images after the damage, and what it came to."""

    data: Images
    report: str
    """One line: the realised rate, and the images of each class."""
    counts: list[int]
    """Images that count for each class by the labels they have now."""
    changed: float
    """Share of labels that are not what they were."""


def corrupt(data: Images, classes: int, how: str, seed: int, task: Task | None = None) -> Corrupted:
    """`none`, `noise=0.4` or `imbalance=1`; `task` says which class an image counts for, as for
    `unbalance`.
    """
    kind, _, size = how.partition("=")
    try:
        amount = float(size) if size else 0.0
    except ValueError:
        raise EchosetError(f"'{how}': {size} is not a number") from None
    if how == "none":
        counts = _counts(_groups(data, classes, task), classes)
        return Corrupted(data, f"{len(data)} images as they are", counts, 0.0)
    if kind == "noise" and size:
        return add_label_noise(data, classes, amount, seed)
    if kind == "imbalance" and size:
        return unbalance(data, classes, amount, seed, task)
    raise EchosetError(f"'{how}' is no corruption; there are none, noise=RATE and imbalance=GAMMA")


def add_label_noise(data: Images, classes: int, rate: float, seed: int) -> Corrupted:
    """With chance `rate` a label becomes a uniform draw over all classes, its own among them."""
    if not 0 <= rate <= 1:
        raise EchosetError(f"the rate of label noise must lie in [0, 1], got {rate}")
    labels = _labels(data, classes)
    if labels.ndim > 1:
        places = " × ".join(str(side) for side in labels.shape[1:])
        raise EchosetError(
            f"{data.name} has {places} labels an image, and label noise is for one; use "
            "imbalance=GAMMA or none"
        )
    generator = torch.Generator().manual_seed(seed)
    is_drawn = torch.rand(len(labels), generator=generator) < rate
    others = torch.randint(classes, labels.shape, generator=generator)
    noisy = torch.where(is_drawn, others, labels)
    changed = (noisy != labels).float().mean().item()
    counts = _counts(noisy, classes)
    drawn = is_drawn.float().mean()
    report = (
        f"{len(labels)} images: {drawn:.1%} of the labels drawn anew, {changed:.1%} changed, by "
        f"class {counts}"
    )
    return Corrupted(replace(data, labels=noisy), report, counts, changed)


def unbalance(
    data: Images, classes: int, gamma: float, seed: int, task: Task | None = None
) -> Corrupted:
    """Keep n_c = round(a/(b + c^γ)) images of the c-th class, c = 1 … K, from all that every class
    has down to a twentieth.

    A small γ drops at once and stays low; a large one falls late. `task` says which class an image
    counts for: without one, its label.
    """
    groups = _groups(data, classes, task)
    quotas = imbalance_counts(min(_counts(groups, classes)), classes, gamma)
    kept = data.chosen(_draw(groups, quotas, seed))
    return Corrupted(kept, f"{len(kept)} images left, by class {quotas}", quotas, 0.0)


def imbalance_counts(
    largest: int, classes: int, gamma: float, smallest: float = SMALLEST
) -> list[int]:
    """n_c = round(a/(b + c^γ)) with a and b such that n_1 = `largest` and n_K = `smallest`·n_1."""
    if not 0 < gamma <= 20:
        raise EchosetError(f"the exponent of imbalance must lie above 0 and up to 20, got {gamma}")
    if classes < 2 or largest < 1:
        raise EchosetError(
            f"imbalance needs two classes and images in each, got {classes} classes and {largest} "
            "images"
        )
    last = largest * smallest
    b = (last * classes**gamma - largest) / (largest - last)
    a = largest * (b + 1)
    return [max(round(a / (b + c**gamma)), 1) for c in range(1, classes + 1)]


def draw_balanced(
    data: Images, classes: int, count: int, seed: int, task: Task | None = None
) -> Images:
    """`count` images drawn at random, as many of each class as of any other; `task` says which
    class an image counts for: without one, its label.
    """
    groups = _groups(data, classes, task)
    if count < 1:
        raise EchosetError(f"a draw takes one image at least, got {count}")
    share, rest = divmod(count, classes)
    quotas = [share + (label < rest) for label in range(classes)]
    counts = _counts(groups, classes)
    if any(have < quota for have, quota in zip(counts, quotas, strict=True)):
        raise EchosetError(
            f"{data.name} has {min(counts)} images in its smallest class, {count} would take "
            f"{max(quotas)} of each"
        )
    return data.chosen(_draw(groups, quotas, seed))


def _draw(groups: Tensor, quotas: Sequence[int], seed: int) -> Tensor:  # (N,) -> (sum,)
    """Indices of images drawn at random, so many of each class, in the order they have."""
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    ordered = groups[order]
    kept = [order[ordered == label][:quota] for label, quota in enumerate(quotas)]
    return torch.cat(kept).sort().values


def _groups(data: Images, classes: int, task: Task | None) -> Tensor:  # (N,)
    """The class that each image counts for."""
    task = task or find_task(USUAL)
    groups = task.group(_labels(data, classes), classes)
    if groups.ndim > 1:
        raise EchosetError(
            f"{data.name} has several labels an image; give the task that says which class such "
            "an image counts for"
        )
    return groups


def _labels(data: Images, classes: int) -> Tensor:  # (N, *places)
    if data.labels is None:
        raise EchosetError(f"{data.name} has no labels, so they can't be corrupted or balanced")
    labels = data.labels.cpu()
    known = labels if labels.ndim == 1 else labels[labels.long() != VOID]
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < classes:
        raise EchosetError(f"{data.name} has labels outside 0 to {classes - 1}")
    return labels


def _counts(groups: Tensor, classes: int) -> list[int]:
    return count_decisions(groups, classes).tolist()
