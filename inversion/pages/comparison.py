"""One page about two runs: the figures of both in two columns, and the options that differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.files import write_atomically
from distill.names import known_names, show_class
from distill.sets.transfer_set import read_manifest
from inversion.classes import MOST_NAMED, MOST_ROWS, say_spread
from inversion.pages.judged_sections import class_shares
from inversion.pages.judging import JUDGED, STUDENT_FILE
from inversion.pages.page import render
from inversion.pages.plots import Plot, Section, lines
from inversion.pages.reading import blaming, last_of, read_document
from inversion.pages.report import set_folder
from inversion.pages.run_sections import CALLS
from inversion.pages.set_sections import source_names
from inversion.pages.verdict import read_verdict
from synthesis_kernels.errors import EchosetError

Row = tuple[str, ...]
LONGEST = 80
"""Characters of an option's value; of a longer one the beginning is shown."""


@dataclass(frozen=True)
class Run:
    """What lies in one run's folder; empty is what is not there."""

    name: str
    manifest: dict[str, Any]
    summary: dict[str, Any]
    student: dict[str, Any]
    judged: dict[str, Any]
    calls: list[dict[str, Any]]
    steps: list[dict[str, Any]]


def write_comparison(first: Path, second: Path, out: Path | None = None) -> Path:
    """Write the page about two folders of demos, sets or students, and return its path."""
    runs = (_read(first), _read(second))
    with blaming(Path(f"{first} or {second}")):
        page = render(
            "comparison.html.j2",
            title="Two runs of echoset",
            figures=_figure_rows(runs),
            classes=_class_rows(runs),
            sections=_sections(runs),
            options=_option_rows(runs),
            unknown=_unknown(runs),
        )
    path = out or first / "comparison.html"
    write_atomically(path, page)
    return path


def _read(folder: Path) -> Run:
    place = set_folder(folder)
    student = read_document(folder / STUDENT_FILE)
    if place is None and not student:
        raise EchosetError(
            f"{folder} holds neither a demo, nor a finished transfer set, nor a student; give a "
            "folder made by demo, synthesize, collect or distill"
        )
    calls: list[dict[str, Any]] = []
    if place is not None:
        with blaming(place / "log.jsonl"):
            calls = last_of(place / "log.jsonl", "call", ("shard", "call"))
    with blaming(folder / "log.jsonl"):
        steps = last_of(folder / "log.jsonl", "distill", ("step",))
    return Run(
        name=str(folder),
        manifest={} if place is None else dict(read_manifest(place)),
        summary=read_document(folder / "summary.json"),
        student=student,
        judged=read_document(folder / JUDGED),
        calls=[call for call in calls if call.get("shard") == 0],
        steps=steps,
    )


def _heads(runs: tuple[Run, Run]) -> list[str]:
    """What the columns are called."""
    return [f"{letter}: {run.name}" for letter, run in zip("AB", runs, strict=True)]


def _figure_rows(runs: tuple[Run, Run]) -> list[Row]:
    """Head and body of the table: figures down, the runs across."""
    columns = [dict(_figures(run)) for run in runs]
    names = list(dict.fromkeys(itertools.chain(*columns)))
    rows: list[Row] = [("", *_heads(runs))]
    for name in names:
        rows.append((name, *(column.get(name, "–") for column in columns)))
    return rows


def _figures(run: Run) -> Iterator[tuple[str, str]]:
    """Name and text of each figure that is known of a run."""
    if run.manifest:
        yield from _of_set(run.manifest)
        overall = read_verdict((Path(run.name), Path(run.name) / "set"), run.manifest, short=True)
        if overall:
            yield "scorecard, overall", overall
    yield from _of_student(run.summary or run.student, run)
    for stage, seconds in run.summary.get("seconds", {}).items():
        yield f"seconds: {stage}", f"{seconds:.1f}"


def _of_set(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "images of the set", f"{sum(shard['count'] for shard in manifest['shards']):,}"
    yield "decisions per class", say_spread(manifest["counts"])
    yield "classes", f"{len(manifest['counts']):,}"
    yield "from", ", ".join(map(str, source_names(manifest)))
    yield "teacher", str(manifest["teacher"].get("model"))
    yield "teacher's weights", f"SHA-256 {str(manifest['teacher'].get('weight_hash'))[:12]}…"
    yield "seed", str(manifest.get("seed", "–"))


def _of_student(told: Mapping[str, Any], run: Run) -> Iterator[tuple[str, str]]:
    if "model" in run.student:
        yield "student", str(run.student["model"])
    parameters = told.get("student_parameters", told.get("parameters"))
    if parameters is not None:
        yield "student's parameters", f"{parameters:,}"
    shares = {
        "teacher_accuracy": "teacher's accuracy",
        "student_accuracy": "student's accuracy",
        "agreement": "same decision as the teacher",
        "held_out_agreement": "agreement on held-out images",
    }
    for key, name in shares.items():
        if told.get(key) is not None:
            if key == "agreement" and not run.summary:
                name = "agreement on the last views"
            yield name, f"{told[key]:.2%}"
    if told.get("test_images"):
        yield "judged on", str(told["test_images"])


def _class_rows(runs: tuple[Run, Run]) -> list[Row]:
    """Shares of each class in both runs; of many classes those that differ most."""
    first, second = (run.judged for run in runs)
    if not first or not second or first["classes"] != second["classes"]:
        return []
    if first["tested"] != second["tested"]:
        return []
    shares = [class_shares(first), class_shares(second)]
    differences = {}
    for label, (one, other) in enumerate(zip(*shares, strict=True)):
        if one is not None and other is not None:
            differences[label] = other - one
    labels = list(differences)
    if len(labels) > MOST_ROWS:
        labels = sorted(labels, key=lambda label: -abs(differences[label]))[:MOST_NAMED]
    names = known_names(first.get("class_names"), first["classes"])
    rows: list[Row] = [("class", *_heads(runs), "difference, points")]
    for label in labels:
        pair = (f"{share[label]:.1%}" for share in shares)
        rows.append((show_class(label, names), *pair, f"{100 * differences[label]:+.1f}"))
    return rows


def _sections(runs: tuple[Run, Run]) -> list[Section]:
    """How both sets and both students grew."""
    plots = []
    calls = [[(call["call"], sum(call["counts"])) for call in run.calls] for run in runs]
    plots += _both("images kept, by call", calls, CALLS, "images", share=False)
    steps = [[(step["step"], step["agreement"]) for step in run.steps] for run in runs]
    agreement = "the student's agreement, by step"
    plots += _both(agreement, steps, "step", "same decision (%)", share=True)
    return [Section("How they grew", plots)] if plots else []


def _both(
    title: str,
    points: list[list[tuple[float, float]]],
    x_label: str,
    y_label: str,
    *,
    share: bool,
) -> list[Plot]:
    """A plot of both runs, where both have a curve."""
    if min(map(len, points)) < 2:
        return []
    places = sorted({x for series in points for x, _ in series})
    curves = {}
    for letter, series in zip("AB", points, strict=True):
        values = dict(series)
        curves[letter] = [values.get(x, math.nan) for x in places]
    limits = (0.0, 1.0) if share else None
    return [lines(title, places, curves, x_label, y_label, share=share, limits=limits)]


def _option_rows(runs: tuple[Run, Run]) -> list[Row]:
    """The options in which the runs differ, of the stages whose options both have kept."""
    rows: list[Row] = [("option", *_heads(runs))]
    stages = [_stages(run) for run in runs]
    for stage in sorted(stages[0].keys() & stages[1].keys()):
        columns = [dict(_flat(kept[stage], stage)) for kept in stages]
        for name in sorted({*columns[0], *columns[1]}):
            texts = [column.get(name, "–") for column in columns]
            if texts[0] != texts[1]:
                rows.append((name, *map(_shortened, texts)))
    return rows


def _unknown(runs: tuple[Run, Run]) -> str:
    """Which stages only one of the runs has."""
    stages = [_stages(run) for run in runs]
    alone = sorted(stages[0].keys() ^ stages[1].keys())
    return f"Only one of the two has options of: {', '.join(alone)}." if alone else ""


def _stages(run: Run) -> dict[str, Any]:
    """The options of each stage of a run."""
    stages = dict(run.student.get("options", {}))
    if run.manifest:
        stages["set"] = run.manifest["config"]
    return stages


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """All options in a group by their whole names."""
    if not isinstance(value, dict) or not value:
        yield name, str(value)
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}")


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
