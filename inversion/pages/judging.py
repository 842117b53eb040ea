"""What is kept of judged images for a page: figures by class, what is taken for what, and some of
the mistakes as small pictures, or pictures beside label maps. It is one JSON document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.tasks.places import count_decisions
from inversion.classes import MOST_ROWS
from inversion.pages.gallery import panels, thumbnail

if TYPE_CHECKING:
    from distill.tasks import Task

JUDGED = "judged.json"
STUDENT_FILE = "student.json"
"""Files that a report reads beside a student."""
MOST_PAIRS = 100
"""Pairs of classes that are kept where there are too many for a matrix."""
MOST_MISTAKES = 12
MOST_SAMPLES = 8
"""Pictures beside their label maps."""
SAMPLE = 2000
"""Images that a student is compared with its teacher on, where no test data was given."""


def judge(
    images: Tensor,  # (N, C, H, W) uint8
    truth: Tensor,  # (N, *places) labels, or the teacher's decisions where there are none
    decisions: Tensor,  # (N, *places) of the network that is judged
    classes: int,
    other: Tensor | None = None,  # (N, *places) of the one beside it
    networks: Sequence[str] = ("student", "teacher"),
    data: str = "test data",
    tested: bool = True,
    class_names: Sequence[str] | None = None,
    task: Task | None = None,
) -> dict[str, Any]:
    """The document. `data` is what the images are called. `tested` says that the truth is the
    labels of test data; otherwise it is the other network's decisions.
    """
    truth = truth.cpu().long()
    decisions = decisions.cpu()
    other = None if other is None else other.cpu()
    right = count_decisions(truth[decisions == truth], classes)
    document: dict[str, Any] = {
        "data": data,
        "tested": tested,
        "classes": classes,
        "networks": list(networks),
        "images": len(images),
        "counts": count_decisions(truth, classes).tolist(),
        "right": right.tolist(),
        "pairs": _count_pairs(truth, decisions, classes),
        "mistakes": _show_mistakes(images, truth, decisions, other),
    }
    if other is not None:
        document["other_right"] = count_decisions(truth[other == truth], classes).tolist()
    if class_names:
        document["class_names"] = list(class_names)
    if task is not None and truth.ndim > 1:
        document["unit"] = task.words.unit
        document["samples"] = _show_samples(images, truth, decisions, other, tested, task)
    return document


def sample_places(count: int, most: int = SAMPLE) -> Tensor:
    """Places of a sample, evenly spread over so many images; no more than `most`."""
    return torch.linspace(0, count - 1, min(SAMPLE, count, most)).long()


def _count_pairs(truth: Tensor, decisions: Tensor, classes: int) -> list[list[int]]:
    """True class, decision and how often, of wrong decisions, the most frequent first."""
    wrong = (truth != decisions) & (truth >= 0)
    codes = truth[wrong] * classes + decisions[wrong]
    found, counts = codes.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    if classes > MOST_ROWS:
        order = order[:MOST_PAIRS]
    pairs = []
    for code, count in zip(found[order].tolist(), counts[order].tolist(), strict=True):
        pairs.append([code // classes, code % classes, count])
    return pairs


def _show_samples(
    images: Tensor,
    truth: Tensor,
    decisions: Tensor,
    other: Tensor | None,
    tested: bool,
    task: Task,
) -> list[dict[str, Any]]:
    """Some images, evenly spread, each beside the painted maps of the labels or the teacher, of the
    network beside the judged one, and of that; none where labels can't be painted.
    """
    samples = []
    for place in torch.linspace(0, len(images) - 1, min(MOST_SAMPLES, len(images))).long().tolist():
        maps = [truth[place], decisions[place]]
        if other is not None and tested:
            maps.insert(1, other[place])
        painted = task.paint(torch.stack([each.long() for each in maps]))
        if painted is None:
            return []
        known = truth[place] >= 0
        right = (decisions[place] == truth[place])[known].float().mean()
        png = panels([images[place].numpy()], list(painted.numpy()))
        samples.append({"png": png, "right": float(right.nan_to_num())})
    return samples


def _show_mistakes(
    images: Tensor, truth: Tensor, decisions: Tensor, other: Tensor | None
) -> list[dict[str, Any]]:
    """Some of the images decided wrongly, evenly spread; none where an image has many decisions."""
    if truth.ndim > 1:
        return []
    wrong = (truth != decisions).nonzero().flatten()
    if not len(wrong):
        return []
    chosen = wrong[torch.linspace(0, len(wrong) - 1, min(MOST_MISTAKES, len(wrong))).long()]
    mistakes = []
    for place in chosen.tolist():
        mistake = {"truth": int(truth[place]), "decision": int(decisions[place])}
        if other is not None:
            mistake["other"] = int(other[place])
        mistakes.append(mistake | {"png": thumbnail(images[place].numpy())})
    return mistakes
