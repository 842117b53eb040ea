"""The summary: means and deviations over seeds."""

from __future__ import annotations

import statistics
from typing import Any

FIGURES = (
    "accuracy",
    "agreement",
    "ece",
    "entropy",
    "magnitude_similarity",
    "angle_similarity",
    "transfer",
)
"""What is averaged; a figure that a cell lacks is None."""
OWN_FIGURES = ("mean_iou",)
"""So are these of a task's own, where it has them."""


def summarise(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over the seeds, one row for each set, corruption and
    method.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        key = (cell["set"], cell["corruption"], cell["method"])
        groups.setdefault(key, []).append(cell)
    return [_summarise_seeds(group) for group in groups.values()]


def _summarise_seeds(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of cells that differ in their seed alone."""
    row: dict[str, Any] = {key: cells[0][key] for key in ("set", "corruption", "method")}
    row["seeds"] = len(cells)
    known = [{**cell.get("own", {}), **cell} for cell in cells]
    for figure in (*FIGURES, *OWN_FIGURES):
        values = [figures[figure] for figures in known if figures.get(figure) is not None]
        row[figure] = statistics.mean(values) if values else None
        row[f"{figure}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    row["worst"] = min(cell["accuracy"] for cell in cells)
    return row
