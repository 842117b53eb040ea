"""One page about a study: a table of methods by corruptions and a chart for each set."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from distill.files import write_atomically
from inversion.page import lines, table, whole

SHARES = ("accuracy", "agreement", "ece", "transfer")  # shown in per cent


def cell_text(row: dict[str, Any] | None, figure: str = "accuracy") -> str:
    """Mean ± standard deviation, shares in per cent; a dash where there is nothing yet."""
    if row is None or row[figure] is None:
        return "–"
    scale, digits = (100, 2) if figure in SHARES else (1, 3)
    known = [value for value in (row[figure], row[f"{figure}_sd"]) if value is not None]
    return " ± ".join(f"{value * scale:.{digits}f}" for value in known)


def grid(rows: list[dict[str, Any]], name: str, figure: str = "accuracy") -> list[tuple[str, ...]]:
    """Head and body of one set's table: methods down, corruptions across."""
    mine = {(row["corruption"], row["method"]): row for row in rows if row["set"] == name}
    damages = list(dict.fromkeys(damage for damage, _ in mine))
    methods = list(dict.fromkeys(method for _, method in mine))
    head = ("method", *damages)
    return [head, *((method, *(cell_text(mine.get((d, method)), figure) for d in damages)) for method in methods)]


def write_study(rows: list[dict[str, Any]], command: str, path: Path) -> None:
    """Write the page."""
    parts = [f"<h1>Echoset study</h1><p class=note><code>{html.escape(command)}</code></p>"]
    for name in sorted({row["set"] for row in rows}, key=lambda name: name == "original"):
        found = grid(rows, name)
        parts.append(f"<h2>{html.escape(name)}: accuracy, %, mean ± standard deviation over seeds</h2>{table(found)}")
        damages = list(found[0][1:])
        means = {(row["corruption"], row["method"]): row["accuracy"] for row in rows if row["set"] == name}
        for kind in ("noise", "imbalance"):
            some = [d for d in damages if d.startswith(kind) or (d == "none" and kind == "noise")]
            whole_lines = {m[0]: [means[d, m[0]] for d in some] for m in found[1:] if all((d, m[0]) in means for d in some)}
            if len(some) > 1 and whole_lines:
                lowest = min(min(line) for line in whole_lines.values())
                parts.append(lines(some, whole_lines, f"accuracy by {kind}", (lowest, 1.0)))
        others = [("mean over corruptions", "agreement", "ECE", "MagSim", "AngSim", "adversarial transfer")]
        for method in (row[0] for row in found[1:]):
            mine = [row for row in rows if row["set"] == name and row["method"] == method]
            figures = ("agreement", "ece", "magnitude_similarity", "angle_similarity", "transfer")
            others.append((method, *(_mean([row[figure] for row in mine]) for figure in figures)))
        parts.append(table(others))
    write_atomically(path, whole("Echoset study", "".join(parts)))


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else "–"
