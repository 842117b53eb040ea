"""One cell of a study: what its result belongs to, how it is computed, and its file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from distill.data.corrupt import corrupt, draw_balanced
from distill.data.images import Images, as_images, content_hash
from distill.evaluation import evaluate
from distill.files import FORMAT, unseal
from distill.losses import full_loss
from distill.models import Classifier
from distill.options import DistillOptions, StudentOptions, StudyOptions
from distill.runtime import Runtime
from distill.sets.transfer_set import TransferSet
from distill.students import build_student, identify_student
from distill.study.cell_check import check_cell
from distill.study.origin import Origin
from distill.study.plan import ORIGINAL, Cell, method_loss
from distill.study.summary import FIGURES
from distill.train import distill
from synthesis_kernels.backend import describe_device
from synthesis_kernels.errors import EchosetError

MADE_WITH = "made_with"
"""Where a cell's file says what it was made with."""


@dataclass(frozen=True)
class Shared:
    """What all cells of a study share."""

    teacher: Classifier
    test: Images
    student: StudentOptions
    options: StudyOptions
    distillation: DistillOptions
    runtime: Runtime

    def labels(self, cell: Cell) -> Literal["teacher", "data"]:
        """Whose labels a cell learns from."""
        return "data" if cell.set == ORIGINAL else self.distillation.labels

    def distillation_of(self, cell: Cell) -> DistillOptions:
        """How a cell's student learns."""
        labels = self.labels(cell)
        loss = method_loss(cell.method, labels == "data")
        return replace(self.distillation, loss=loss, labels=labels)


def origins(
    shared: Shared, sets: Mapping[str, TransferSet | Images], cells: Sequence[Cell]
) -> dict[Cell, Origin]:
    """What each cell's result belongs to."""
    teacher = shared.teacher
    runtime = shared.runtime
    settings = {
        "format": FORMAT,
        "student": identify_student(shared.student),
        "study": {"attacks": shared.options.attacks, "images": shared.options.images},
        "device": runtime.resolve_device().type,
        "precision": runtime.precision,
        "step": runtime.step,
        "teacher": teacher.contract,
    }
    hashes = {
        "teacher's weights": teacher.weight_hash(),
        "test data": content_hash(shared.test.images, shared.test.labels),
    }
    contents = {name: content_hash(data.images, data.labels) for name, data in sets.items()}
    found = {}
    for cell in cells:
        own = {"cell": asdict(cell), "distillation": asdict(shared.distillation_of(cell))}
        found[cell] = Origin(settings | own, hashes | {"set": contents[cell.set]})
    return found


def run_cell(
    shared: Shared,
    cell: Cell,
    data: TransferSet | Images,
    answers: Tensor
    | None,  # (N, K, *places) the teacher's, to the test images, where they are kept
    folder: Path,
) -> dict[str, Any]:
    """Damage, train, judge; the last step's student, or the one that held-out images of the set
    chose.
    """
    began = time.perf_counter()
    runtime = replace(shared.runtime, seed=cell.seed, quiet=True)
    images, report = _damage(shared, cell, data)
    options = shared.distillation_of(cell)
    student = build_student(shared.student, shared.teacher.contract, cell.seed)
    learnt = distill(student, images, shared.teacher, options, folder=folder, runtime=runtime)
    evaluation = evaluate(
        student,
        shared.test,
        shared.teacher,
        attacks=shared.options.attacks,
        teacher_logits=answers,
        runtime=runtime,
    )
    return {
        **asdict(cell),
        "report": report,
        "set_size": len(images),
        "loss": full_loss(options.loss),
        "labels": options.labels,
        **asdict(evaluation),
        "steps": learnt.steps,
        "train_seconds": learnt.seconds,
        "seconds": time.perf_counter() - began,
        "device": describe_device(runtime.resolve_device()),
        "torch": torch.__version__,
    }


def _damage(shared: Shared, cell: Cell, data: TransferSet | Images) -> tuple[Images, str]:
    """What a cell learns from, and what was done to it."""
    classes = shared.teacher.spec.classes
    task = shared.teacher.task
    count = shared.options.images
    images = as_images(data, cell.set)
    if count and cell.set != ORIGINAL:
        images = draw_balanced(images, classes, count, cell.seed, task)
    if shared.labels(cell) != "data":
        return images, f"{len(images)} images as they are"
    damaged = corrupt(images, classes, cell.corruption, cell.seed, task)
    return damaged.data, damaged.report


def read_cell(path: Path, origin: Origin) -> dict[str, Any] | None:
    """A cell's result, or None where there is none yet; one that is damaged, or that other options
    made, is an error.
    """
    if not path.is_file():
        return None
    try:
        result = unseal(json.loads(path.read_text()))
        lacking = {"key", "report", "seconds", *FIGURES} - result.keys()
        if lacking:
            raise ValueError(f"it lacks {min(lacking)}")
        check_cell(result)
    except (ValueError, RecursionError) as error:
        raise EchosetError(
            f"{path} is not a cell of a study, or is damaged ({error}); delete it to compute it "
            "again"
        ) from error
    if result["key"] != origin.key:
        told = origin.differences(result.get(MADE_WITH)) or "or another version"
        raise EchosetError(
            f"{path} was made with other options or data ({told}); choose another --out, or delete "
            "it"
        )
    return result
