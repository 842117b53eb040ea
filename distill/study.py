"""The study: every method on every set under every corruption, cell by cell, so that a kill costs
one cell at most.

A finished cell is one JSON file; it is never computed again. Several processes may share a grid:
each takes every n-th cell.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.data.corrupt import corrupt, draw_balanced
from distill.data.images import Images, as_images, content_hash
from distill.evaluation import check_fit, evaluate, predict
from distill.files import FORMAT, write_json
from distill.learner import Learner, full_loss
from distill.lessons import check_lesson
from distill.loop import StepProgress
from distill.methods import LABELS, find_method
from distill.models import Classifier
from distill.options import DistillOptions, StudentOptions, StudyOptions, split_method
from distill.runtime import Runtime
from distill.sets.transfer_set import TransferSet
from distill.students import build_student, identify_student
from distill.train import distill
from synthesis_kernels.backend import describe_device
from synthesis_kernels.errors import EchosetError

REFERENCES = ("plain", "hinton")
"""Rows beside the grid: plain training and KD on the original data, all of it, undamaged."""
FIGURES = (
    "accuracy",
    "agreement",
    "ece",
    "entropy",
    "magnitude_similarity",
    "angle_similarity",
    "transfer",
)


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


@dataclass(frozen=True)
class _Common:
    """What all cells share."""

    teacher: Classifier
    test: Images
    student: StudentOptions
    options: StudyOptions
    distillation: DistillOptions
    runtime: Runtime

    def labels(self, cell: Cell) -> str:
        """Whose labels a cell learns from."""
        return "data" if cell.set == "original" else self.distillation.labels


def method_loss(method: str, labelled: bool) -> dict[str, float]:
    """The losses behind a method's name; published weights, with labels where the data has them or
    the method wants them.
    """
    methods = [find_method(name) for name in split_method(method)]
    loss = {each.name: each.weight for each in methods}
    # Networks that learn together learn from labels in their own way.
    if labelled and not any(each.crowd for each in methods):
        for each in methods:
            if each.beside_labels is not None:
                loss[each.name], loss[LABELS] = each.beside_labels
    return loss


def plan(sets: Mapping[str, Any], options: StudyOptions, original: bool) -> list[Cell]:
    """All cells, references first, seeds outermost: a grid that is stopped early has whole
    seeds.
    """
    cells = []
    for seed in options.seeds:
        if original:
            cells += [Cell("original", "none", method, seed) for method in REFERENCES]
        cells += [
            Cell(name, damage, method, seed)
            for name in sets
            for damage in options.corruptions
            for method in options.methods
        ]
    return list(dict.fromkeys(cells))


def run_study(
    teacher: Classifier,
    sets: Mapping[str, TransferSet | Images],
    test: Images,
    out: str | Path,
    student: StudentOptions = StudentOptions(),
    options: StudyOptions = StudyOptions(),
    distillation: DistillOptions = DistillOptions(),
    original: Images | None = None,
    runtime: Runtime = Runtime(),
) -> list[dict[str, Any]]:
    """Fill the grid under `out`/cells and return every cell that is finished, this process's and
    others'.
    """
    out = Path(out)
    device = runtime.resolve_device()
    common = _Common(teacher, test, student, options, distillation, runtime)
    _check(common, sets, original)
    everything = dict(sets) | ({"original": original} if original is not None else {})
    cells = plan(sets, options, original is not None)
    keys = _keys(common, everything, cells)
    for cell in cells:  # made otherwise, it is refused before anything is computed
        _finished(out / "cells" / f"{cell.name}.json", keys[cell])
    answers = None
    todo = runtime.share(cells)
    with StepProgress("cells", len(todo), runtime.quiet) as progress:
        for number, cell in enumerate(todo):
            path, folder = (
                out / "cells" / f"{cell.name}.json",
                out / "cells" / cell.name / keys[cell][:12],
            )
            figures = ""
            if _finished(path, keys[cell]) is None:
                if answers is None:
                    answers = predict(teacher, test.images, device).cpu()
                found = _run_cell(common, cell, everything[cell.set], answers, folder)
                write_json(path, {"key": keys[cell], **found})
                figures = f"{cell.name} {found['accuracy']:.2%}"
            progress.update(number + 1, figures)
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another study's cell may have been stopped there
                folder.parent.rmdir()
    found = [_finished(out / "cells" / f"{cell.name}.json", keys[cell]) for cell in cells]
    return [cell for cell in found if cell is not None]


def _keys(
    common: _Common, everything: Mapping[str, TransferSet | Images], cells: list[Cell]
) -> dict[Cell, str]:
    """What each cell's result belongs to: a file made with anything else must not be taken for
    it.
    """
    teacher, test, options = common.teacher, common.test, common.options
    settings = [
        FORMAT,
        identify_student(common.student),
        {**asdict(common.distillation), "loss": {}},
        options.attacks,
        options.images,
    ]
    runtime = common.runtime
    settings += [runtime.resolve_device().type, runtime.precision, runtime.step]
    settings += [teacher.weight_hash(), teacher.contract, content_hash(test.images, test.labels)]
    contents = {name: content_hash(data.images, data.labels) for name, data in everything.items()}
    keys = {}
    for cell in cells:
        loss = method_loss(cell.method, common.labels(cell) == "data")
        keys[cell] = sha256(
            json.dumps([settings, contents[cell.set], asdict(cell), loss]).encode()
        ).hexdigest()
    return keys


def _run_cell(
    common: _Common,
    cell: Cell,
    data: TransferSet | Images,
    answers: Tensor,  # (N, K) the teacher's, to the test images
    folder: Path,
) -> dict[str, Any]:
    """Damage, train, judge; the last step's student, or the one that held-out images of the set
    chose.
    """
    began = time.perf_counter()
    teacher = common.teacher
    options = common.options
    classes = teacher.spec.classes
    runtime = replace(common.runtime, seed=cell.seed, quiet=True)
    data, labels = as_images(data, cell.set), common.labels(cell)
    if options.images and cell.set != "original":
        data = draw_balanced(data, classes, options.images, cell.seed)
    report = f"{len(data)} images as they are"
    if labels == "data":
        damaged = corrupt(data, classes, cell.corruption, cell.seed)
        data, report = damaged.data, damaged.report
    wanted = replace(
        common.distillation, loss=method_loss(cell.method, labels == "data"), labels=labels
    )
    student = build_student(common.student, teacher.contract, cell.seed)
    learnt = distill(student, data, teacher, wanted, folder=folder, runtime=runtime)
    judged = evaluate(
        student,
        common.test,
        teacher,
        attacks=options.attacks,
        teacher_logits=answers,
        runtime=runtime,
    )
    return {
        **asdict(cell),
        "report": report,
        "set_size": len(data),
        "loss": full_loss(wanted.loss),
        "labels": labels,
        **asdict(judged),
        "steps": learnt.steps,
        "train_seconds": learnt.seconds,
        "seconds": time.perf_counter() - began,
        "device": describe_device(runtime.resolve_device()),
        "torch": torch.__version__,
    }


def summarise(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over the seeds, one row for each set, corruption and
    method.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["set"], cell["corruption"], cell["method"]), []).append(cell)
    rows = []
    for (name, damage, method), mine in groups.items():
        row: dict[str, Any] = {
            "set": name,
            "corruption": damage,
            "method": method,
            "seeds": len(mine),
        }
        for figure in FIGURES:
            values = [cell[figure] for cell in mine if cell[figure] is not None]
            row[figure] = statistics.mean(values) if values else None
            row[f"{figure}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row | {"worst": min(cell["accuracy"] for cell in mine)})
    return rows


def _check(
    common: _Common,
    sets: Mapping[str, TransferSet | Images],
    original: Images | None,
) -> None:
    """Refuse what would fail in the last cell before the first one starts."""
    options, classes, labels = (
        common.options,
        common.teacher.spec.classes,
        common.distillation.labels,
    )
    check_fit(common.teacher, common.test)
    if not sets and original is None:
        raise EchosetError('a study needs a set: --sets \'{"name": "path"}\'')
    for name in sets:
        if name == "original" or not name or "/" in name or "--" in name or name.startswith("."):
            raise EchosetError(
                f"'{name}' can't be the name of a set: it becomes part of file names, and "
                "'original' is taken"
            )
    if original is not None:
        corrupt(original, classes, "none", 0)
    if any(how != "none" for how in options.corruptions) and labels != "data":
        raise EchosetError(
            "corruptions change the data's labels, and the teacher's are used: add "
            "--distillation.labels data"
        )
    student = build_student(common.student, common.teacher.contract)
    if sets:
        _check_methods(common, student)
    for name, data in sets.items():
        images = as_images(data, name)
        images = draw_balanced(images, classes, options.images, 0) if options.images else images
        for how in options.corruptions if labels == "data" else ():
            corrupt(images, classes, how, 0)
        check_lesson(student, images, common.teacher, common.distillation)


def _check_methods(common: _Common, student: Classifier) -> None:
    """Build every method's learner once: that says whether it can be had with these two
    networks.
    """
    for method in common.options.methods:
        loss = method_loss(method, common.distillation.labels == "data")
        Learner(student, common.teacher, replace(common.distillation, loss=loss)).check_step(
            common.runtime.step
        )


def _finished(path: Path, key: str) -> dict[str, Any] | None:
    """A cell's result, or None where there is none yet; one that is damaged, or that other options
    made, is an error.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not {"key", "report", "seconds", *FIGURES} <= found.keys():
        raise EchosetError(
            f"{path} is not a cell of a study, or is damaged; delete it to compute it again"
        )
    if found["key"] != key:
        raise EchosetError(
            f"{path} was made with other options or data, or another version; choose another "
            "--out, or delete it"
        )
    return found
