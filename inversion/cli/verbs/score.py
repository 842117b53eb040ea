"""Say what sets are worth, from the teacher alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from rich.console import Console

from distill.data.images import Images, as_images
from distill.files import write_json
from distill.options import StudyOptions
from distill.sets.transfer_set import TransferSet, raw_counts
from inversion.cli.show import command_line, finish, rows_table, show_table
from inversion.cli.verbs.shared import (
    fill_grid,
    load_set,
    load_test_data,
    require_data,
    strip_cells,
    teacher_for,
)
from inversion.health import check_health
from inversion.pages.scores import (
    Scored,
    ranked,
    score_rows,
    validation_notes,
    validation_rows,
    write_scores,
)
from inversion.scoring.scorecard import check_counts, check_images, decides_once
from inversion.scoring.scorecard import score as score_images
from inversion.scoring.scores import OVERALL, definitions
from inversion.scoring.validation import check_sets, validate
from inversion.teacher import load_teacher, trained_views
from synthesis_kernels.backend import describe_device
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.terminal import plain

if TYPE_CHECKING:
    from rich.table import Table

    from distill.models import Classifier
    from inversion.cli.schema import ScoreRun


class Sample(NamedTuple):
    """What is scored of a set."""

    images: Images
    raw_counts: list[int] | Literal["own"] | None
    """The teacher's decisions before filtering, where they are known."""
    shards: list[str]
    """Hashes of a transfer set's shards: by these a report knows its set."""


def execute(run: ScoreRun) -> int:
    """Score every set, show them side by side, and with --validate say how far the scores can be
    trusted.
    """
    _check_run(run)
    if not run.validate and not run.leads:
        return finish(run, None, {"complete": False}, "another process scores the sets")
    options = teacher_for(run.teacher, run.sets.values())
    if run.validate:
        require_data(run.data, options)
    teacher = load_teacher(options, trust=run.trust)
    check_health(teacher, run)
    trained_views(teacher.spec)
    samples = {name: _load_sample(run, teacher, path) for name, path in run.sets.items()}
    cells: list[dict[str, Any]] = []
    if run.validate:
        cells, wanted = _teach_students(run, teacher, samples)
        if len(cells) < wanted or not run.leads:
            line = "this process's students are finished; another writes the page"
            return finish(run, None, {"complete": False}, line)

    scored = {name: _score(run, teacher, name, sample) for name, sample in samples.items()}
    validation = _validate(scored, cells) if run.validate else None
    command = command_line()
    document = {
        "command": command,
        "ranked": ranked(scored),
        "definitions": definitions(),
        "overall": OVERALL,
        "device": describe_device(run.resolve_device()),
        "torch": torch.__version__,
        "sets": {
            name: {"path": one.path, "shards": samples[name].shards, **one.card.document()}
            for name, one in scored.items()
        },
    }
    if validation is not None:
        document["validation"] = validation
        document["study"] = strip_cells(cells)
        write_json(_folder(run) / "validation.json", document)
    write_scores(scored, command, Path(run.out), validation)
    write_json(Path(run.out).with_suffix(".json"), document)
    if not run.quiet:
        _show(scored, validation)
    return finish(run, None, document, f"{OVERALL}\npage: {Path(run.out)}")


def _check_run(run: ScoreRun) -> None:
    """Refuse what can be refused before anything is loaded."""
    if not run.sets:
        raise EchosetError(
            "there is nothing to score; name sets: echoset score runs/set leaves=runs/leaves"
        )
    if not run.out.endswith(".html"):
        raise EchosetError(f"--out is the page to write and should end in .html, got {run.out}")
    if run.validate:
        check_sets(run.sets)


def _folder(run: ScoreRun) -> Path:
    """Where cells and validation.json go: beside the page, called as it is."""
    return Path(run.out).with_suffix("")


def _load_sample(run: ScoreRun, teacher: Classifier, path: str) -> Sample:
    data = load_set(path, teacher, run.quiet, labelled=False)
    counts = _find_raw_counts(data, path, teacher)
    images = _choose_evenly(as_images(data, path), run.images)
    check_images(images.images, teacher, path)
    shards = []
    if isinstance(data, TransferSet):
        shards = [shard["sha256"] for shard in data.manifest["shards"]]
    return Sample(images, counts, shards)


def _find_raw_counts(
    data: TransferSet | Images, path: str, teacher: Classifier
) -> list[int] | Literal["own"] | None:
    """The teacher's decisions before filtering: a folder's own, those that a set's manifest has
    kept, or unknown.
    """
    if isinstance(data, Images):
        return "own"
    if "collection" in data.manifest and not decides_once(teacher):
        return None  # images were counted there, each for one class
    counts: list[int] | None = raw_counts(data.manifest)
    try:
        check_counts(counts, teacher.spec.classes)
    except EchosetError as error:
        raise EchosetError(f"{Path(path) / 'manifest.json'}: {error}") from error
    return counts


def _choose_evenly(data: Images, count: int) -> Images:
    """`count` of the images, evenly spread; all of them for 0, or where there are no more."""
    if not 0 < count < len(data):
        return data
    return data.chosen(torch.linspace(0, len(data) - 1, count).long())


def _teach_students(
    run: ScoreRun, teacher: Classifier, samples: dict[str, Sample]
) -> tuple[list[dict[str, Any]], int]:
    """This process's part of the students, one of each set and seed; all that are finished, and how
    many there are to be.
    """
    options = StudyOptions(methods=("hinton",), seeds=run.seeds, attacks=0)
    sets = {name: sample.images for name, sample in samples.items()}
    data = load_test_data(run.data, teacher, run.quiet, void=run.void)
    return fill_grid(run, teacher, sets, data, _folder(run), options)


def _score(run: ScoreRun, teacher: Classifier, name: str, sample: Sample) -> Scored:
    images = sample.images.images  # (N, C, H, W) uint8
    if not run.quiet:
        print(f"scoring {plain(name)}, {len(images):,} images", file=sys.stderr)
    card = score_images(images, teacher, sample.raw_counts, run.scores, runtime=run)
    return Scored(run.sets[name], images, card, teacher.task.words)


def _validate(scored: dict[str, Scored], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """How well each score predicts the students' accuracy; that of students of the original data
    stands beside it.
    """
    cards = {name: one.card for name, one in scored.items()}
    validation = validate(cards, cells)
    original = []
    for cell in cells:
        if cell["set"] == "original" and cell["method"] == "hinton":
            original.append(cell["accuracy"])
    validation["original"] = sum(original) / len(original) if original else None
    return validation


def _show(scored: dict[str, Scored], validation: dict[str, Any] | None) -> None:
    """The tables: as many sets stand side by side as the terminal is wide."""
    if validation is not None:
        show_table(_validation_table(validation))
    names = ranked(scored)
    column = max(9, *map(len, names)) + 3
    abreast = max(1, (Console().width - 30) // column)
    for start in range(0, len(names), abreast):
        rows = score_rows(scored, names[start : start + abreast])
        show_table(rows_table("Scorecard", rows))


def _validation_table(validation: dict[str, Any]) -> Table:
    table = rows_table("Do the scores predict the students?", validation_rows(validation))
    order = sorted(validation["sets"].items(), key=lambda item: -item[1]["accuracy"])
    accuracies = ", ".join(f"{name} {one['accuracy']:.2%}" for name, one in order)
    notes = validation_notes(validation)
    table.caption = "\n".join([f"mean test accuracy: {accuracies}", *notes])
    return table
