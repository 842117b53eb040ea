"""Images of a set that stand out: the hardest and surest for the teacher, the most alike, and those
most like real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.names import show_class
from distill.sets.transfer_set import TransferSet
from distill.tasks.places import in_parts, per_image
from inversion.pages.gallery import thumbnail
from inversion.pages.judged_sections import Picture

SHOWN = 12
PAIRS = 6
COMPARED = 2000
"""Images that are compared with one another, at most, evenly spread over the set."""
REAL = 10_000
"""Real images that they are compared with, likewise."""
SIDE = 16
"""Images are compared at so many pixels a side, at most."""
AT_ONCE = 100
"""Images that are looked at at once."""


@dataclass(frozen=True)
class Extremes:
    """What a page shows of them."""

    hardest: list[Picture]
    surest: list[Picture]
    alike: list[tuple[list[Picture], str]]
    """Two pictures, and their correlation."""
    note: str


def extremes(transfer_set: TransferSet) -> Extremes:
    """The images that stand out."""
    sure = confidences(transfer_set)
    confidence = torch.empty(0) if sure is None else per_image(sure)
    groups = transfer_set.groups.tolist()
    names = transfer_set.class_names
    labels = [show_class(group, names) for group in groups]

    def pictures(places: list[int]) -> list[Picture]:
        return [_picture(transfer_set, place, labels, confidence) for place in places]

    hardest = pictures(confidence.argsort(stable=True)[:SHOWN].tolist())
    surest = pictures(_surest(groups, confidence))
    pairs, note = _most_alike(transfer_set, labels)
    return Extremes(hardest, surest, pairs, note)


def _surest(groups: Sequence[int], confidence: Tensor) -> list[int]:
    """The surest image of each class, of the first classes that have any."""
    places: dict[int, int] = {}
    for place in confidence.argsort(descending=True, stable=True).tolist():
        places.setdefault(groups[place], place)
    return [places[label] for label in sorted(places) if label >= 0][:SHOWN]


def _picture(
    transfer_set: TransferSet, place: int, labels: Sequence[str], confidence: Tensor
) -> Picture:
    return Picture(_shown(transfer_set, place), [labels[place], f"{confidence[place]:.1%}"])


def _shown(transfer_set: TransferSet, place: int) -> str:
    """An image, with its label map where it has one."""
    painted = transfer_set.task.paint(transfer_set.labels[place : place + 1])
    return thumbnail(
        transfer_set.images[place].numpy(), None if painted is None else painted[0].numpy()
    )


def confidences(transfer_set: TransferSet) -> Tensor | None:  # (N, *places)
    """The softmax of each decision; None where the set keeps no answers."""
    if not transfer_set.has_logits:
        return None
    shape = (transfer_set.classes, *transfer_set.labels.shape[1:])
    parts = in_parts(len(transfer_set), shape)
    return torch.cat([transfer_set.logits_of(part).softmax(1).amax(1) for part in parts])


def _most_alike(
    transfer_set: TransferSet, labels: Sequence[str]
) -> tuple[list[tuple[list[Picture], str]], str]:
    """Pairs of images of the highest correlation, no image twice, and how alike neighbours are."""
    count = len(transfer_set)
    chosen = _spread(count)
    if len(chosen) < 2:
        return [], ""
    looks = _looks(transfer_set.images, chosen)
    nearest, neighbour = (looks @ looks.T).fill_diagonal_(-1).max(1)
    pairs: list[tuple[list[Picture], str]] = []
    used: set[int] = set()
    for first in nearest.argsort(descending=True, stable=True).tolist():
        second = int(neighbour[first])
        if len(pairs) == PAIRS:
            break
        if used.isdisjoint((first, second)):
            used.update((first, second))
            places = [int(chosen[first]), int(chosen[second])]
            pictures = [_plain(transfer_set, place, labels) for place in sorted(places)]
            pairs.append((pictures, f"{nearest[first]:.3f}"))
    of = f"{len(chosen):,} of the images" if len(chosen) < count else "all images"
    note = (
        f"Correlation of pixels, of {of}. Half of them have a nearest neighbour of "
        f"{nearest.median():.2f} or more; 1 would be a copy."
    )
    return pairs, note


def _plain(transfer_set: TransferSet, place: int, labels: Sequence[str]) -> Picture:
    return Picture(_shown(transfer_set, place), [labels[place]])


def nearest_real(
    transfer_set: TransferSet,
    real: Tensor,  # (N, C, H, W) uint8
    name: str,
) -> dict[str, Any]:
    """Which images of a set are most like real ones, and how alike neighbours are, for a page. The
    real ones are only looked at: nothing follows from them.
    """
    places = _spread(len(transfer_set))
    others = _spread(len(real), REAL)
    likeness = _looks(transfer_set.images, places) @ _looks(real, others).T
    nearest, neighbour = likeness.max(1)
    labels = transfer_set.groups.tolist()
    pairs = []
    for first in nearest.argsort(descending=True, stable=True)[:PAIRS].tolist():
        place = int(places[first])
        other = real[int(others[neighbour[first]])]
        pair = {
            "png": _shown(transfer_set, place),
            "real": thumbnail(other.numpy()),
            "class": show_class(labels[place], transfer_set.class_names),
            "correlation": round(nearest[first].item(), 3),
        }
        pairs.append(pair)
    return {
        "pairs": pairs,
        "median": round(nearest.median().item(), 3),
        "images": len(places),
        "real": f"{len(others):,} images: {name}",
    }


def _spread(count: int, most: int = COMPARED) -> Tensor:
    """Places evenly spread over so many images."""
    return torch.linspace(0, count - 1, min(most, count)).long()


def _looks(images: Tensor, chosen: Tensor) -> Tensor:  # (N, C, H, W) -> (n, D)
    """What the correlations of these images are the products of."""
    size = (min(SIDE, images.shape[2]), min(SIDE, images.shape[3]))
    small = []
    for part in chosen.split(AT_ONCE):
        shrunken = F.adaptive_avg_pool2d(images[part].float(), size)
        small.append(shrunken.flatten(1))
    values = torch.cat(small)
    return F.normalize(values - values.mean(1, keepdim=True), dim=1)
