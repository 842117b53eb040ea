"""Sums over parts of test data, of which every figure of an evaluation follows: their size does not
grow with the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.tasks import Task
from distill.tasks.places import count_decisions

BINS = 10
"""Of confidence, for the calibration error."""
AT_ONCE = 2**24
"""Numbers of answers that are looked at together."""
FIRST = 5
"""Likeliest classes among which the true one counts as found."""


def part_size(shape: Sequence[int], batch: int) -> int:
    """Images whose answers (K, *places) are counted together: whole batches, so that no answer
    depends on the parts.
    """
    return max(AT_ONCE // (batch * math.prod(shape)), 1) * batch


class Tally:
    """What a network, and perhaps another beside it, answered so far."""

    def __init__(self, task: Task, classes: int, device: torch.device) -> None:
        self.task = task
        self.classes = classes
        self.totals = torch.zeros(classes, dtype=torch.int64, device=device)
        """Decisions that are known, of each true class."""
        self.right = torch.zeros_like(self.totals)
        """… and those of them that are right."""
        self.first = self.totals.new_zeros(())
        self.agreed = self.totals.new_zeros(())
        self.entropy = torch.zeros((), dtype=torch.double, device=device)
        self.surplus = torch.zeros(BINS, dtype=torch.double, device=device)
        self.task_counts: Tensor | None = None
        """What the task counts."""

    @torch.no_grad()
    def add(
        self,
        logits: Tensor,  # (B, K, *places)
        labels: Tensor,  # (B, *places)
        decisions: Tensor,  # (B, *places)
        other: Tensor | None = None,  # (B, *places) decisions of the network beside it
    ) -> None:
        """Count a part of the data."""
        self.totals += count_decisions(labels, self.classes)
        self.right += count_decisions(labels[decisions == labels], self.classes)
        if other is not None:
            self.agreed += ((other == decisions) & (labels >= 0)).sum()
        counts = self.task.count(decisions, labels, self.classes)
        self.task_counts = counts if self.task_counts is None else self.task_counts + counts
        for rows, truth in known_rows(logits, labels):
            self.entropy -= (rows.softmax(1) * rows.log_softmax(1)).sum(1).sum()
            add_surplus(self.surplus, rows, truth)
            if self.classes > FIRST:
                first = rows.topk(FIRST, 1).indices
                self.first += (first == truth.unsqueeze(1)).any(1).sum()

    def figures(self, compared: bool) -> dict[str, Any]:
        """Fields of an `Evaluation`; with agreement where another network was `compared`."""
        known = self.totals.sum()
        right = self.right.tolist()
        totals = self.totals.tolist()
        per_class = [
            one / total if total else None for one, total in zip(right, totals, strict=True)
        ]
        return {
            "accuracy": _mean(self.right.sum(), known),
            "top5": _mean(self.first, known) if self.classes > FIRST else None,
            "per_class": per_class,
            "ece": (self.surplus.abs().sum() / known).item(),
            "entropy": _mean(self.entropy, known),
            "agreement": _mean(self.agreed, known) if compared else None,
            "own": {} if self.task_counts is None else self.task.measure(self.task_counts),
        }


def _mean(total: Tensor, count: Tensor) -> float:
    """Rounded to float32, as precise as the answers."""
    return (total.double() / count).float().item()


def add_surplus(
    surplus: Tensor,  # (bins,) double
    rows: Tensor,  # (M, K)
    labels: Tensor,  # (M,)
) -> None:
    """Add to each bin of confidence how much more sure the answers in it are than right."""
    bins = len(surplus)
    confidence, chosen = rows.softmax(1).max(1)
    place = (confidence * bins).long().clamp_max(bins - 1)
    surplus.index_add_(0, place, confidence.double() - (chosen == labels).double())


def known_rows(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Answers (M, K) and labels (M,) of the places that are known: of label maps in parts, so that
    what is computed of them takes little memory.
    """
    if labels.ndim == 1:
        yield logits, labels
        return
    images = max(AT_ONCE // logits[0].numel(), 1)
    for some, truth in zip(logits.split(images), labels.split(images), strict=True):
        known = truth >= 0
        yield some.movedim(1, -1)[known], truth[known]
