"""Damage done to labelled images on purpose, as the study of distillation beyond compression
defines it (ICPR 2020).

Everything follows from a seed, and says what it came to: `print(add_label_noise(data, 10, 0.4,
seed=0).report)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distill.data.images import Images
from synthesis_kernels.errors import EchosetError

SMALLEST = 1 / 20
"""The last class's part of the first one's images under imbalance: 250 of 5,000 in the study."""


@dataclass(frozen=True)
class Corrupted:
    """Images after the damage, and what it came to."""

    data: Images
    report: str
    """One line: the realised rate, and the images of each class."""
    counts: list[int]
    """Images per (given) label."""
    changed: float
    """Share of labels that are not what they were."""


def corrupt(data: Images, classes: int, how: str, seed: int) -> Corrupted:
    """`none`, `noise=0.4` or `imbalance=1`."""
    kind, _, size = how.partition("=")
    try:
        amount = float(size) if size else 0.0
    except ValueError:
        raise EchosetError(f"'{how}': {size} is not a number") from None
    if how == "none":
        labels = _labels(data, classes)
        return Corrupted(data, f"{len(data)} images as they are", _counts(labels, classes), 0.0)
    if kind == "noise" and size:
        return add_label_noise(data, classes, amount, seed)
    if kind == "imbalance" and size:
        return unbalance(data, classes, amount, seed)
    raise EchosetError(f"'{how}' is no corruption; there are none, noise=RATE and imbalance=GAMMA")


def add_label_noise(data: Images, classes: int, rate: float, seed: int) -> Corrupted:
    """With chance `rate` a label becomes a uniform draw over all classes, its own among them."""
    if not 0 <= rate <= 1:
        raise EchosetError(f"the rate of label noise must lie in [0, 1], got {rate}")
    labels = _labels(data, classes)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(len(labels), generator=generator) < rate
    noisy = torch.where(drawn, torch.randint(classes, labels.shape, generator=generator), labels)
    changed = (noisy != labels).float().mean().item()
    counts = _counts(noisy, classes)
    rates = f"{drawn.float().mean():.1%} of the labels drawn anew, {changed:.1%} changed"
    return Corrupted(
        replace(data, labels=noisy),
        f"{len(labels)} images: {rates}, by class {counts}",
        counts,
        changed,
    )


def unbalance(data: Images, classes: int, gamma: float, seed: int) -> Corrupted:
    """Keep n_c = round(a/(b + c^γ)) images of the c-th class, c = 1 … K, from all that every class
    has down to a twentieth.

    A small γ drops at once and stays low; a large one falls late.
    """
    labels = _labels(data, classes)
    wanted = imbalance_counts(min(_counts(labels, classes)), classes, gamma)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    kept = (
        torch.cat([order[labels[order] == c][:count] for c, count in enumerate(wanted)])
        .sort()
        .values
    )
    return Corrupted(data.chosen(kept), f"{len(kept)} images left, by class {wanted}", wanted, 0.0)


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
    first, last = largest, largest * smallest
    b = (last * classes**gamma - first) / (first - last)
    a = first * (b + 1)
    return [max(round(a / (b + c**gamma)), 1) for c in range(1, classes + 1)]


def draw_balanced(data: Images, classes: int, count: int, seed: int) -> Images:
    """`count` images drawn at random, as many of each class as of any other."""
    labels = _labels(data, classes)
    if count < 1:
        raise EchosetError(f"a draw takes one image at least, got {count}")
    share, rest = divmod(count, classes)
    have = _counts(labels, classes)
    if any(n < share + (c < rest) for c, n in enumerate(have)):
        needs = f"{count} would take {share + bool(rest)} of each"
        raise EchosetError(f"{data.name} has {min(have)} images in its smallest class, {needs}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    kept = [order[labels[order] == c][: share + (c < rest)] for c in range(classes)]
    return data.chosen(torch.cat(kept).sort().values)


def _labels(data: Images, classes: int) -> Tensor:
    if data.labels is None:
        raise EchosetError(f"{data.name} has no labels, so they can't be corrupted or balanced")
    if len(data) and not 0 <= int(data.labels.min()) <= int(data.labels.max()) < classes:
        raise EchosetError(f"{data.name} has labels outside 0 to {classes - 1}")
    return data.labels.cpu()


def _counts(labels: Tensor, classes: int) -> list[int]:
    return torch.bincount(labels, minlength=classes).tolist()
