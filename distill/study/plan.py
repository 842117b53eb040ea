"""The grid: which distillations a study consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.methods import LABELS, find_method
from distill.options import StudyOptions, split_method

ORIGINAL = "original"
"""The name of the original data among the sets."""
REFERENCES = ("plain", "hinton")
"""Rows beside the grid: plain training and KD on the original data, all of it, undamaged."""


@dataclass(frozen=True)
class Cell:
    """One distillation of the grid."""

    set: str
    corruption: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """A file name that says which one it is."""
        return f"{self.set}--{self.corruption}--{self.method}--{self.seed}"


def plan(sets: Mapping[str, Any], options: StudyOptions, original: bool) -> list[Cell]:
    """All cells, references first, seeds outermost: a grid that is stopped early has whole
    seeds.
    """
    cells = []
    for seed in options.seeds:
        if original:
            cells += [Cell(ORIGINAL, "none", method, seed) for method in REFERENCES]
        for name in sets:
            for corruption in options.corruptions:
                cells += [Cell(name, corruption, method, seed) for method in options.methods]
    return list(dict.fromkeys(cells))


def method_loss(method: str, labelled: bool) -> dict[str, float | None]:
    """The losses behind a method's name; published weights, with labels where the data has them or
    the method wants them.
    """
    methods = [find_method(name) for name in split_method(method)]
    loss: dict[str, float | None] = {each.name: each.weight for each in methods}
    # Networks that learn together learn from labels in their own way.
    if not labelled or any(each.crowd for each in methods):
        return loss
    for each in methods:
        if each.beside_labels is not None:
            weight, labels_weight = each.beside_labels
            loss[each.name] = weight
            loss[LABELS] = labels_weight
    return loss
