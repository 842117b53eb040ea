"""Say what sets are worth, from the teacher alone."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from distill.data.images import Images, as_images
from distill.files import write_json
from distill.options import StudyOptions
from distill.sets.transfer_set import TransferSet, raw_counts
from inversion.cli.schema import ScoreRun
from inversion.cli.show import finish, rows_table
from inversion.cli.verbs.shared import fill_grid, load_set, load_test_data, require_data
from inversion.pages.scores import (
    Scored,
    ranked,
    score_rows,
    validation_notes,
    validation_rows,
    write_scores,
)
from inversion.scoring.scorecard import check_counts, check_images
from inversion.scoring.scorecard import score as score_images
from inversion.scoring.scores import OVERALL, definitions
from inversion.scoring.validation import check_sets, validate
from inversion.teacher import check_shape, load_teacher, trained_views
from synthesis_kernels.backend import describe_device
from synthesis_kernels.errors import EchosetError


def execute(run: ScoreRun) -> int:
    """Score every set, show them side by side, and with --validate say how far the scores can be
    trusted.
    """
    if not run.sets:
        raise EchosetError(
            "there is nothing to score; name sets: echoset score runs/set leaves=runs/leaves"
        )
    if run.images < 0:
        raise EchosetError(f"images must be at least 0, got {run.images}")
    if not run.out.endswith(".html"):
        raise EchosetError(f"--out is the page to write and should end in .html, got {run.out}")
    if run.validate:
        check_sets(run.sets)
        require_data(run.data, run.teacher)
    teacher, page = load_teacher(run.teacher), Path(run.out)
    check_shape(teacher)
    trained_views(teacher.spec)
    sets, drawn = {}, {}
    for name, path in run.sets.items():
        data = load_set(path, teacher, run.quiet, labelled=False)
        drawn[name] = _raw_counts(data, path, teacher.spec.classes)
        sets[name] = _evenly(as_images(data, path), run.images)
        check_images(sets[name].images, teacher, path)
    cells: list[dict[str, Any]] = []
    if run.validate:
        options = StudyOptions(methods=("hinton",), seeds=run.seeds, attacks=0)
        cells, wanted = fill_grid(
            run,
            teacher,
            sets,
            load_test_data(run.data, teacher, run.quiet),
            page.with_suffix(""),
            options,
        )
        if len(cells) < wanted:
            return finish(
                run,
                None,
                {"complete": False},
                "this process's students are finished, others' are not yet",
            )
    scored = {}
    for name, data in sets.items():
        if not run.quiet:
            print(f"scoring {name}, {len(data):,} images", file=sys.stderr)
        card = score_images(data.images, teacher, drawn[name], run.scores, runtime=run)
        scored[name] = Scored(run.sets[name], data.images, card)
    command = shlex.join(["echoset", *sys.argv[1:]])
    found = (
        validate({name: one.card for name, one in scored.items()}, cells) if run.validate else None
    )
    document: dict[str, Any] = {
        "command": command,
        "ranked": ranked(scored),
        "definitions": definitions(),
        "overall": OVERALL,
    }
    document |= {"device": describe_device(run.resolve_device()), "torch": torch.__version__}
    document["sets"] = {
        name: {"path": one.path, **one.card.document()} for name, one in scored.items()
    }
    if found is not None:
        original = [
            cell["accuracy"]
            for cell in cells
            if cell["set"] == "original" and cell["method"] == "hinton"
        ]
        found["original"] = sum(original) / len(original) if original else None
        document["validation"] = found
        document["study"] = [
            {k: v for k, v in cell.items() if k not in ("key", "per_class")} for cell in cells
        ]
        write_json(page.with_suffix("") / "validation.json", document)
    write_scores(scored, command, page, found)
    if found is not None and not run.quiet:
        Console(markup=False).print(_validation_table(found))
    names, width = document["ranked"], max(9, *map(len, scored)) + 3
    abreast = max(1, (Console().width - 30) // width)  # as many sets as stand side by side
    for start in range(0, 0 if run.quiet else len(names), abreast):
        Console(markup=False).print(
            rows_table("Scorecard", score_rows(scored, names[start : start + abreast]))
        )
    return finish(run, None, document, f"{OVERALL}\npage: {page}")


def _raw_counts(
    data: TransferSet | Images, path: str, classes: int
) -> list[int] | Literal["own"] | None:
    """The teacher's decisions before filtering: a folder's own, those that a set's manifest has
    kept, or unknown.
    """
    if isinstance(data, Images):
        return "own"
    counts = raw_counts(data.manifest)
    try:
        check_counts(counts, classes)
    except EchosetError as error:
        raise EchosetError(f"{Path(path) / 'manifest.json'}: {error}") from error
    return counts


def _evenly(data: Images, count: int) -> Images:
    """`count` of the images, evenly spread; all of them for 0, or where there are no more."""
    return (
        data.chosen(torch.linspace(0, len(data) - 1, count).long())
        if 0 < count < len(data)
        else data
    )


def _validation_table(found: dict[str, Any]) -> Table:
    table = rows_table("Do the scores predict the students?", validation_rows(found))
    order = sorted(found["sets"].items(), key=lambda item: -item[1]["accuracy"])
    accuracies = ", ".join(f"{name} {one['accuracy']:.2%}" for name, one in order)
    table.caption = "\n".join([f"mean test accuracy: {accuracies}", *validation_notes(found)])
    return table
