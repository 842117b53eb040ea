"""Compare methods on sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.files import write_json
from distill.study import summarise
from inversion.cli.show import command_line, finish, new_table, show_table
from inversion.cli.verbs.own_folder import mark_folder
from inversion.cli.verbs.shared import (
    fill_grid,
    load_set,
    load_test_data,
    require_data,
    strip_cells,
    teacher_for,
)
from inversion.health import check_health
from inversion.pages.study import grids, write_study
from inversion.teacher import load_teacher

if TYPE_CHECKING:
    from inversion.cli.schema import StudyRun


def execute(run: StudyRun) -> int:
    """Fill the grid, then show and write what there is."""
    options = teacher_for(run.teacher, run.sets.values())
    require_data(run.data, options)
    teacher = load_teacher(options, trust=run.trust)
    check_health(teacher, run)
    out = Path(run.out)
    data = load_test_data(run.data, teacher, run.quiet, void=run.void)
    labelled = run.distillation.labels == "data" or run.study.images > 0  # drawn evenly by them
    sets = {
        name: load_set(path, teacher, run.quiet, labelled, run.void)
        for name, path in run.sets.items()
    }
    mark_folder(out, "study", ("cells", "study.json", "study.html"), run.overwrite)
    cells, wanted = fill_grid(run, teacher, sets, data, out, run.study)
    rows = summarise(cells)
    command = command_line()
    document = {"command": command, "cells": len(cells), "of": wanted, "rows": rows}
    if len(cells) < wanted or not run.leads:
        line = f"{len(cells)} of {wanted} cells are done; this process's part is complete"
        return finish(run, None, document, line)
    write_json(out / "study.json", {**document, "runs": strip_cells(cells)})
    write_study(rows, command, out / "study.html")
    if not run.quiet:
        for name in dict.fromkeys(row["set"] for row in rows):
            _show_set(name, rows, cells)
    return finish(run, None, document, f"page: {out / 'study.html'}")


def _show_set(name: str, rows: list[dict[str, Any]], cells: list[dict[str, Any]]) -> None:
    """Tables of one set: methods down, damages of the labels across; and what the damages were."""
    tables = []
    for heading, (head, *body) in grids(rows, name).items():
        table = new_table(f"{name}: {heading}", *head)
        for line in body:
            table.add_row(*line)
        tables.append(table)
    reports: dict[str, None] = {}
    for cell in cells:
        if cell["set"] == name:
            reports[f"{cell['corruption']}, seed {cell['seed']}: {cell['report']}"] = None
    tables[-1].caption = "\n".join(reports)
    for table in tables:
        show_table(table)
