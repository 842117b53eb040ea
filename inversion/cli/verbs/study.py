"""Compare methods on sets."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from rich.console import Console

from distill.files import write_json
from distill.study import summarise
from inversion.cli.schema import StudyRun
from inversion.cli.show import finish, new_table
from inversion.cli.verbs.shared import fill_grid, load_set, load_test_data, require_data
from inversion.pages.study import grid, write_study
from inversion.teacher import load_teacher


def execute(run: StudyRun) -> int:
    """Fill the grid, then show and write what there is."""
    require_data(run.data, run.teacher)
    teacher, out = load_teacher(run.teacher), Path(run.out)
    data = load_test_data(run.data, teacher, run.quiet)
    labelled = run.distillation.labels == "data" or run.study.images > 0  # drawn evenly by them
    sets = {name: load_set(path, teacher, run.quiet, labelled) for name, path in run.sets.items()}
    cells, wanted = fill_grid(run, teacher, sets, data, out, run.study)
    rows = summarise(cells)
    command = shlex.join(["echoset", *sys.argv[1:]])
    document = {"command": command, "cells": len(cells), "of": wanted, "rows": rows}
    if len(cells) < wanted:
        return finish(
            run,
            None,
            document,
            f"{len(cells)} of {wanted} cells are done; this process's part is complete",
        )
    runs = [{k: v for k, v in cell.items() if k not in ("key", "per_class")} for cell in cells]
    write_json(out / "study.json", {**document, "runs": runs})
    write_study(rows, command, out / "study.html")
    for name in dict.fromkeys(row["set"] for row in rows):
        head, *body = grid(rows, name)
        table = new_table(f"{name}: accuracy, %", *head)
        for line in body:
            table.add_row(*line)
        mine = [cell for cell in cells if cell["set"] == name]
        reports = dict.fromkeys(
            f"{cell['corruption']}, seed {cell['seed']}: {cell['report']}" for cell in mine
        )
        table.caption = "\n".join(reports)
        if not run.quiet:
            Console(markup=False).print(table)
    return finish(run, None, document, f"page: {out / 'study.html'}")
