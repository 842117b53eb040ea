"""One page about a study: for each set a table of methods by corruptions, and charts of their
accuracy.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from distill.files import write_atomically
from inversion.pages.page import dots, lines, table, whole

SHARES = ("accuracy", "agreement", "ece", "transfer")  # shown in per cent
REFERENCES = {"plain": "plain training", "hinton": "KD on the original data"}
"""What the methods of the set `original` are called."""


def cell_text(row: dict[str, Any] | None, figure: str = "accuracy") -> str:
    """Mean ± standard deviation, shares in per cent; a dash where there is nothing yet."""
    if row is None or row[figure] is None:
        return "–"
    scale, digits = (100, 2) if figure in SHARES else (1, 3)
    known = [value for value in (row[figure], row[f"{figure}_sd"]) if value is not None]
    return " ± ".join(f"{value * scale:.{digits}f}" for value in known)


def shown_name(name: str, method: str) -> str:
    """A method as the reader knows it: on the original data it is a reference."""
    return REFERENCES.get(method, method) if name == "original" else method


def grid(rows: list[dict[str, Any]], name: str, figure: str = "accuracy") -> list[tuple[str, ...]]:
    """Head and body of one set's table: methods down, corruptions across."""
    mine = {(row["corruption"], row["method"]): row for row in rows if row["set"] == name}
    damages, methods = _levels(rows, name), _methods(rows, name)
    body = [
        (shown_name(name, method), *(cell_text(mine.get((d, method)), figure) for d in damages))
        for method in methods
    ]
    return [("method", *damages), *body]


def write_study(rows: list[dict[str, Any]], command: str, path: Path) -> None:
    """Write the page."""
    parts = [f"<h1>Echoset study</h1><p class=note><code>{html.escape(command)}</code></p>"]
    for name in sorted({row["set"] for row in rows}, key=lambda name: name == "original"):
        head = f"<h2>{html.escape(name)}: accuracy, %, mean ± standard deviation over seeds</h2>"
        parts += [head, table(grid(rows, name)), *_charts(rows, name), table(_means(rows, name))]
    write_atomically(path, whole("Echoset study", "".join(parts)))


def _charts(rows: list[dict[str, Any]], name: str) -> list[str]:
    """Lines over the levels of a corruption; dots for whatever level has no other to be joined
    with.
    """
    levels, methods, charts, joined = _levels(rows, name), _methods(rows, name), [], set()
    means = {
        (row["corruption"], row["method"]): row["accuracy"] for row in rows if row["set"] == name
    }
    for kind in ("noise", "imbalance"):
        some = [
            level
            for level in levels
            if level.startswith(kind) or (level == "none" and kind == "noise")
        ]
        some.sort(key=lambda level: float(level.partition("=")[2] or 0))
        whole_lines = {
            m: [means[level, m] for level in some]
            for m in methods
            if all((level, m) in means for level in some)
        }
        if len(some) > 1 and whole_lines:
            lowest = min(min(line) for line in whole_lines.values())
            charts.append(lines(some, whole_lines, f"accuracy by {kind}", (lowest, 1.0)))
            joined.update(some)
    return charts + [_by_method(rows, name, level) for level in levels if level not in joined]


def _by_method(rows: list[dict[str, Any]], name: str, level: str) -> str:
    """Accuracy of every method on one set at one level, the references on the original data below,
    in grey.
    """
    mine = [row for row in rows if row["set"] == name and row["corruption"] == level]
    beside = [row for row in rows if row["set"] == "original" != name]
    title = "accuracy by method, %" + ("" if level == "none" else f", {level}")
    return dots([_dot(row) for row in mine], [_dot(row) for row in beside], title)


def _dot(row: dict[str, Any]) -> tuple[str, float, float]:
    return (
        shown_name(row["set"], row["method"]),
        100 * row["accuracy"],
        100 * (row["accuracy_sd"] or 0.0),
    )


def _means(rows: list[dict[str, Any]], name: str) -> list[tuple[str, ...]]:
    """Head and body of the table of all other figures."""
    found = [
        ("mean over corruptions", "agreement", "ECE", "MagSim", "AngSim", "adversarial transfer")
    ]
    for method in _methods(rows, name):
        mine = [row for row in rows if row["set"] == name and row["method"] == method]
        figures = ("agreement", "ece", "magnitude_similarity", "angle_similarity", "transfer")
        found.append(
            (
                shown_name(name, method),
                *(_mean([row[figure] for row in mine]) for figure in figures),
            )
        )
    return found


def _levels(rows: list[dict[str, Any]], name: str) -> list[str]:
    return list(dict.fromkeys(row["corruption"] for row in rows if row["set"] == name))


def _methods(rows: list[dict[str, Any]], name: str) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows if row["set"] == name))


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else "–"
