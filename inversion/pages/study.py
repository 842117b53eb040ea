"""One page about a study: for each set a table of methods by corruptions, and plots of their
accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.files import write_atomically
from inversion.pages.page import render
from inversion.pages.plots import Dot, Plot, dots, lines

Row = dict[str, Any]
"""Means over seeds of one method on one set, corrupted in one way."""

SHARES = ("accuracy", "mean_iou", "agreement", "ece", "transfer")
"""Figures shown in per cent."""
ORIGINAL = "original"
REFERENCES = {"plain": "plain training", "hinton": "KD on the original data"}
"""What the methods of the set `original` are called."""
UNDAMAGED = "none"
KINDS = {"noise": "label noise (share of labels)", "imbalance": "imbalance (exponent)"}
"""Corruptions that come in levels, and what their levels are."""
MEANS = {
    "agreement": "agreement",
    "ece": "ECE",
    "magnitude_similarity": "MagSim",
    "angle_similarity": "AngSim",
    "transfer": "adversarial transfer",
}
"""Figures of the second table, and their headings."""


MAIN = {"accuracy": "accuracy, %", "mean_iou": "mean IoU, %"}
"""What has a table by corruptions, where the students have it, and its heading."""


@dataclass(frozen=True)
class SetPart:
    """What the page shows of one set."""

    name: str
    grids: dict[str, list[tuple[str, ...]]]
    """By heading."""
    plots: list[Plot]
    means: list[tuple[str, ...]]


def cell_text(row: Row | None, figure: str = "accuracy") -> str:
    """Mean ± standard deviation, shares in per cent; a dash where there is nothing yet."""
    if row is None or row.get(figure) is None:
        return "–"
    scale = 1
    digits = 3
    if figure in SHARES:
        scale = 100
        digits = 2
    values = [row[figure], row[f"{figure}_sd"]]
    return " ± ".join(f"{value * scale:.{digits}f}" for value in values if value is not None)


def shown_name(name: str, method: str) -> str:
    """A method as the reader knows it: on the original data it is a reference."""
    if name == ORIGINAL:
        return REFERENCES.get(method, method)
    return method


def grid(rows: Sequence[Row], name: str, figure: str = "accuracy") -> list[tuple[str, ...]]:
    """Head and body of one set's table: methods down, corruptions across."""
    rows = _of_set(rows, name)
    cells = {(row["corruption"], row["method"]): row for row in rows}
    levels = _levels(rows)
    table = [("method", *levels)]
    for method in _methods(rows):
        texts = [cell_text(cells.get((level, method)), figure) for level in levels]
        table.append((shown_name(name, method), *texts))
    return table


def grids(rows: Sequence[Row], name: str) -> dict[str, list[tuple[str, ...]]]:
    """One set's tables, by heading."""
    rows = _of_set(rows, name)
    return {
        heading: grid(rows, name, figure)
        for figure, heading in MAIN.items()
        if any(row.get(figure) is not None for row in rows)
    }


def write_study(rows: Sequence[Row], command: str, path: Path) -> None:
    """Write the page."""
    # The original data comes last.
    names = sorted({row["set"] for row in rows}, key=lambda name: name == ORIGINAL)
    parts = [_part(rows, name) for name in names]
    page = render("study.html.j2", title="Echoset study", command=command, parts=parts)
    write_atomically(path, page)


def _part(rows: Sequence[Row], name: str) -> SetPart:
    references = []
    if name != ORIGINAL:
        references = _of_set(rows, ORIGINAL)
    of_set = _of_set(rows, name)
    return SetPart(name, grids(rows, name), _plots(of_set, references), _means(of_set, name))


def _plots(rows: Sequence[Row], references: Sequence[Row]) -> list[Plot]:
    """Lines over the levels of a corruption; dots for whatever level has no other to be joined
    with.
    """
    plots = []
    joined: set[str] = set()
    for kind in KINDS:
        levels = _levels_of_kind(rows, kind)
        accuracies = _whole_lines(rows, levels)
        if len(levels) > 1 and accuracies:
            plots.append(_by_level(kind, levels, accuracies))
            joined.update(levels)
    for level in _levels(rows):
        if level not in joined:
            plots.append(_by_method(rows, references, level))
    return plots


def _levels_of_kind(rows: Sequence[Row], kind: str) -> list[str]:
    """The levels of one kind of corruption by their numbers; no damage is the least noise."""
    levels = [level for level in _levels(rows) if level.startswith(kind)]
    if kind == "noise" and UNDAMAGED in _levels(rows):
        levels.append(UNDAMAGED)
    return sorted(levels, key=lambda level: float(level.partition("=")[2] or 0))


def _whole_lines(rows: Sequence[Row], levels: Sequence[str]) -> dict[str, list[float]]:
    """Accuracies by level, of the methods that have one at every level."""
    accuracies = {(row["corruption"], row["method"]): row["accuracy"] for row in rows}
    whole = {}
    for method in _methods(rows):
        if all((level, method) in accuracies for level in levels):
            whole[method] = [accuracies[level, method] for level in levels]
    return whole


def _by_level(kind: str, levels: Sequence[str], accuracies: dict[str, list[float]]) -> Plot:
    lowest = min(min(line) for line in accuracies.values())
    # Where all is right, an axis of one point still has a length.
    lowest = min(lowest, 0.99)
    return lines(
        f"accuracy by {kind}",
        levels,
        accuracies,
        KINDS[kind],
        "accuracy (%)",
        share=True,
        limits=(lowest, 1.0),
    )


def _by_method(rows: Sequence[Row], references: Sequence[Row], level: str) -> Plot:
    """Accuracy of every method at one level, the references on the original data below, in grey."""
    title = "accuracy by method, %"
    if level != UNDAMAGED:
        title += f", {level}"
    at_level = [_dot(row) for row in rows if row["corruption"] == level]
    return dots(title, at_level, [_dot(row) for row in references], "accuracy (%)")


def _dot(row: Row) -> Dot:
    name = shown_name(row["set"], row["method"])
    return Dot(name, 100 * row["accuracy"], 100 * (row["accuracy_sd"] or 0.0))


def _means(rows: Sequence[Row], name: str) -> list[tuple[str, ...]]:
    """Head and body of the table of all other figures."""
    table = [("mean over corruptions", *MEANS.values())]
    for method in _methods(rows):
        of_method = [row for row in rows if row["method"] == method]
        texts = [_mean([row[figure] for row in of_method]) for figure in MEANS]
        table.append((shown_name(name, method), *texts))
    return table


def _of_set(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["set"] == name]


def _levels(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["corruption"] for row in rows))


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{sum(known) / len(known):.3f}"
