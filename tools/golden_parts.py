"""What the runs of `golden_runs.py` share: how a set, a collection and a student are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hashing import Thing, read_tensors

from distill import (
    DistillOptions,
    StudentOptions,
    TransferSet,
    build_student,
    distill,
)
from distill.runtime import Runtime
from inversion import (
    CollectOptions,
    SynthesisOptions,
    TeacherOptions,
    collect,
    load_teacher,
    synthesize_share,
)
from inversion.options import AdversaryOptions, ObjectiveOptions

ALIKE = Runtime(device="cpu", quiet=True)
"""How every run is called; its precision is `auto`, but for the run that says otherwise."""
SHARED = "shared-set"
"""Folder of the demo's set, from which other runs learn."""
DEMO = SynthesisOptions(
    images=60,
    batch=60,
    calls=8,
    objective=ObjectiveOptions(adversary_after=2),
    adversary=AdversaryOptions(steps=3),
)
"""The demo's synthesis, of fewer images, calls and steps: enough that the adversary acts."""
SHORT = DistillOptions(steps=20, batch=32)
"""A distillation in seconds."""


def make_set(
    folder: Path,
    options: SynthesisOptions,
    teacher: str = "mnist",
    **more: Any,
) -> list[Thing]:
    """The shards of a synthesis, and its adversarial student where that is kept."""
    synthesize_share(
        load_teacher(TeacherOptions(teacher)), options, folder, runtime=replace(ALIKE, **more)
    )
    return read_tensors(folder)


def collect_set(
    folder: Path,
    sources: tuple[str, ...],
    options: CollectOptions,
) -> list[Thing]:
    """The shards of a collection."""
    collect(load_teacher(), sources, options, folder, runtime=ALIKE)
    return read_tensors(folder)


def make_student(folder: Path, data: Path, options: DistillOptions, **more: Any) -> list[Thing]:
    """A fresh student that has learnt from a set."""
    teacher = load_teacher()
    student = build_student(StudentOptions(), teacher.contract)
    distill(
        student,
        TransferSet.load(data),
        teacher,
        options,
        folder=folder,
        runtime=replace(ALIKE, **more),
    )
    return [student.state_dict()]


def learn(folder: Path, loss: dict[str, float | None], **changes: Any) -> list[Thing]:
    """A student that has learnt from the demo's set by these losses."""
    options = replace(SHORT, loss=loss, **changes)
    return make_student(folder / "student", demo_set(folder), options)


def demo_set(folder: Path) -> Path:
    """The demo's set, which runs share; `prepare` made it."""
    return folder.parent / SHARED


def prepare(folder: Path) -> None:
    """Make what runs share."""
    make_set(folder / SHARED, DEMO)
