"""The study: every method on every set under every corruption, cell by cell, so that a kill costs one cell at most.

A finished cell is one JSON file; it is never computed again. Several processes may share a grid: each takes every n-th cell.
"""

from __future__ import annotations

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

from distill.corrupt import corrupt, draw_balanced
from distill.data import Images
from distill.evaluation import check_fit, evaluate, predict
from distill.files import write_atomically
from distill.learner import PUBLISHED
from distill.loop import StepProgress
from distill.models import Classifier
from distill.options import Device, DistillOptions, Precision, Step, StudentOptions, StudyOptions
from distill.train import build_student, distill
from distill.transfer_set import TransferSet
from synthesis_kernels.backend import describe_device, resolve_device
from synthesis_kernels.errors import EchosetError

REFERENCES = ("plain", "hinton")
"""Rows beside the grid: plain training and KD on the original data, all of it, undamaged."""
FIGURES = ("accuracy", "agreement", "ece", "entropy", "magnitude_similarity", "angle_similarity", "transfer")


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


def method_loss(method: str, labelled: bool) -> dict[str, float]:
    """The losses behind a method's name; published weights, with labels where the data has them or the method wants them."""
    names = ["labels" if part == "plain" else part for part in method.split("+")]
    if unknown := [name for name in names if name not in PUBLISHED]:
        raise EchosetError(f"no method '{unknown[0]}'; there are plain, {', '.join(PUBLISHED)}, and joins such as hinton+at")
    loss = {name: PUBLISHED[name] for name in names}
    if "hinton" in loss and labelled:
        loss |= {"hinton": 0.9, "labels": 0.1}  # α = .9
    return loss


def plan(sets: Mapping[str, Any], options: StudyOptions, original: bool) -> list[Cell]:
    """All cells, references first, seeds outermost: a grid that is stopped early has whole seeds."""
    cells = []
    for seed in options.seeds:
        if original:
            cells += [Cell("original", "none", method, seed) for method in REFERENCES]
        cells += [Cell(name, damage, method, seed) for name in sets for damage in options.corruptions for method in options.methods]
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
    device: Device = "auto",
    precision: Precision = "auto",
    step: Step = "auto",
    rank: int = 0,
    world: int = 1,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Fill the grid under `out`/cells and return every cell that is finished, this process's and others'."""
    out = Path(out)
    where = resolve_device(device)
    _check(teacher, sets, test, options, distillation, original, rank, world)
    everything = dict(sets) | ({"original": original} if original is not None else {})
    settings = [asdict(student), asdict(distillation), options.attacks, _content(test), teacher.weight_hash()]
    settings += [where.type, precision, step]
    contents = {name: _content(data) for name, data in everything.items()}
    answers = None
    cells = plan(sets, options, original is not None)
    with StepProgress("cells", len(cells[rank::world]), quiet) as progress:
        for number, cell in enumerate(cells[rank::world]):
            key = sha256(json.dumps([settings, contents[cell.set], _drawn(cell, options), asdict(cell)]).encode()).hexdigest()
            path = out / "cells" / f"{cell.name}.json"
            if _finished(path, key) is None:
                if answers is None:
                    answers = predict(teacher, test.images, where).cpu()
                found = _run_cell(
                    *(cell, everything[cell.set], teacher, student, test, answers, options, distillation),
                    *(out / "cells" / cell.name, device, precision, step),
                )
                write_atomically(path, (json.dumps({"key": key, **found}, indent=1) + "\n").encode())
                shutil.rmtree(out / "cells" / cell.name, ignore_errors=True)
                progress.update(number + 1, f"{cell.name} {found['accuracy']:.2%}")
            else:
                progress.update(number + 1)
    found = [_finished(out / "cells" / f"{cell.name}.json") for cell in cells]
    return [cell for cell in found if cell is not None]


def _run_cell(
    cell: Cell,
    data: TransferSet | Images,
    teacher: Classifier,
    network: StudentOptions,
    test: Images,
    answers: Tensor,
    options: StudyOptions,
    distillation: DistillOptions,
    folder: Path,
    device: Device,
    precision: Precision,
    step: Step,
) -> dict[str, Any]:
    """Damage, train, judge; the last step's student, or the one that held-out images of the set chose."""
    began = time.perf_counter()
    classes = teacher.spec.classes
    reference = cell.set == "original"
    labels = "data" if reference else distillation.labels
    report = f"{len(data)} images as they are"
    if labels == "data" or cell.corruption != "none":
        data = data if isinstance(data, Images) else Images(data.images, data.labels, cell.set)
        if options.images and not reference:
            data = draw_balanced(data, classes, options.images, cell.seed)
        damaged = corrupt(data, classes, cell.corruption, cell.seed)
        data, report = damaged.data, damaged.report
    elif options.images:
        data = data if isinstance(data, Images) else Images(data.images, data.labels, cell.set)
        data = draw_balanced(data, classes, options.images, cell.seed)
    wanted = replace(distillation, loss=method_loss(cell.method, labels == "data"), labels=labels)
    student = build_student(network, teacher.contract, cell.seed)
    learnt = distill(student, data, teacher, wanted, cell.seed, device, precision, folder, quiet=True, step=step)
    judged = evaluate(student, test, teacher, device, quiet=True, attacks=options.attacks, teacher_logits=answers)
    return {
        **asdict(cell),
        "report": report,
        "set_size": len(data),
        "loss": wanted.loss,
        "labels": labels,
        **asdict(judged),
        "steps": learnt.steps,
        "train_seconds": learnt.seconds,
        "seconds": time.perf_counter() - began,
        "device": describe_device(resolve_device(device)),
        "torch": torch.__version__,
    }


def summarise(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over the seeds, one row for each set, corruption and method."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["set"], cell["corruption"], cell["method"]), []).append(cell)
    rows = []
    for (name, damage, method), mine in groups.items():
        row: dict[str, Any] = {"set": name, "corruption": damage, "method": method, "seeds": len(mine)}
        for figure in FIGURES:
            values = [cell[figure] for cell in mine if cell[figure] is not None]
            row[figure] = statistics.mean(values) if values else None
            row[f"{figure}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row | {"worst": min(cell["accuracy"] for cell in mine)})
    return rows


def _check(
    teacher: Classifier,
    sets: Mapping[str, TransferSet | Images],
    test: Images,
    options: StudyOptions,
    distillation: DistillOptions,
    original: Images | None,
    rank: int,
    world: int,
) -> None:
    """Refuse what would fail in the last cell before the first one starts."""
    check_fit(teacher, test)
    if not 0 <= rank < world:
        raise EchosetError(f"rank must lie in 0 … world − 1, got rank {rank} of {world}")
    if not sets and original is None:
        raise EchosetError('a study needs a set: --sets \'{"name": "path"}\'')
    for name in sets:
        if name == "original" or not name or "/" in name or "--" in name or name.startswith("."):
            raise EchosetError(f"'{name}' can't be the name of a set: it becomes part of file names, and 'original' is taken")
    if not options.seeds or not options.methods or not options.corruptions:
        raise EchosetError("a study needs one seed, one method and one corruption at least")
    for method in options.methods:
        method_loss(method, True)
    if original is not None:
        corrupt(original, teacher.spec.classes, "none", 0)
    labelled = distillation.labels == "data" or options.images or any(how != "none" for how in options.corruptions)
    if any(how != "none" for how in options.corruptions) and distillation.labels != "data":
        raise EchosetError("corruptions change the data's labels, and the teacher's are used: add --distillation.labels data")
    for name, data in sets.items():
        if labelled:
            data = data if isinstance(data, Images) else Images(data.images, data.labels, name)
            data = draw_balanced(data, teacher.spec.classes, options.images, 0) if options.images else data
            for how in options.corruptions:
                corrupt(data, teacher.spec.classes, how, 0)


def _content(data: TransferSet | Images) -> str:
    digest = sha256(data.images.numpy(force=True).tobytes())
    if data.labels is not None:
        digest.update(data.labels.numpy(force=True).tobytes())
    return digest.hexdigest()


def _drawn(cell: Cell, options: StudyOptions) -> int:
    return 0 if cell.set == "original" else options.images


def _finished(path: Path, key: str | None = None) -> dict[str, Any] | None:
    """A cell's result, or None where there is none yet; one that other options made is an error."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise EchosetError(f"{path} is not readable JSON ({error}); delete it to compute this cell again") from error
    if key is not None and found.get("key") != key:
        raise EchosetError(f"{path} was made with other options or data; choose another --out, or delete it")
    return found
