"""What a demo refuses before it deletes or computes anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from distill.data.images import Images
from distill.evaluation import check_fit
from distill.learner import Learner
from distill.lessons import check_lesson
from distill.train import STATE
from inversion.cli.verbs.shared import STUDENT
from inversion.driver import check_synthesis
from inversion.inspection import inspect_teacher
from inversion.jobs import plan as plan_shards
from inversion.pages.judging import JUDGED, STUDENT_FILE
from inversion.recipes import find_recipe
from inversion.sources import DRAWN
from inversion.sources.stream import open_sources
from inversion.teacher import BUNDLED
from inversion.teacher_file import spell_out
from synthesis_kernels.backend import describe_forms
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.step import resolve_step

if TYPE_CHECKING:
    from distill.models import Classifier
    from distill.options import StudentOptions
    from inversion.cli.schema import DemoRun

DEMO_FILES = ("summary.json", "report.html", STUDENT, "log.jsonl", STUDENT_FILE, JUDGED)
"""What a finished demo leaves in its folder, beside its sets."""


def check_demo(run: DemoRun, teacher: Classifier, fresh: Classifier, data: Images) -> None:
    """Whatever can be refused is refused before anything is deleted or computed."""
    check_fit(teacher, data)
    synthesis = check_synthesis(teacher, run.synthesis, run)
    jobs = plan_shards(synthesis, teacher.spec.classes)
    if run.distillation.steps:
        _check_lesson(run, teacher, fresh, sum(sum(job.quotas) for job in jobs))
    describe_forms(run.resolve_device())
    resolve_step(run.step, run.resolve_device(), run.distillation.steps)
    inspect_teacher(teacher, find_recipe(run.synthesis.recipe).needs == "BatchNorm")
    _check_folder(run)
    _check_beside(run, teacher)
    _check_start(run)
    if run.synthesis.adversary.keep and len(jobs) > 1:
        raise EchosetError(
            "an adversarial student learns one shard, and these are several: raise "
            f"--synthesis.shard_images to {run.synthesis.images}"
        )


def _check_lesson(run: DemoRun, teacher: Classifier, fresh: Classifier, count: int) -> None:
    """Whether the student can be taught by a set of so many images, which is not made yet."""
    pixel = torch.zeros(1, 1, 1, 1).byte()
    label = torch.zeros(()).long()
    images = pixel.expand(count, -1, -1, -1)
    labels = label.expand(count, *teacher.answer_shape[1:])
    to_be_made = Images(images, labels, "set")
    check_lesson(fresh, to_be_made, teacher, run.distillation)
    Learner(fresh, teacher, run.distillation)


def _check_folder(run: DemoRun) -> None:
    """Nothing that the demo reads may lie where it writes and clears away."""
    out = Path(run.out)
    written = {(out / name).resolve() for name in (*DEMO_FILES, STATE, "set", "beside")}
    for path in _files_read(run):
        places = {Path(path).resolve(), *Path(path).resolve().parents}
        if written & places:
            raise EchosetError(
                f"{path} lies in {run.out}, where this demo writes and clears away; choose "
                "another --out"
            )


def _files_read(run: DemoRun) -> list[str]:
    """Files and folders that the demo is told to read."""
    paths = []
    named = spell_out(run.teacher, BUNDLED, run.trust).options
    for given in (run.teacher.model, named.model, named.weights):
        if given and Path(given).is_file():  # or it is a name
            paths.append(given)
    for student in (run.student, run.synthesis.adversary.student):
        if student.weights:
            paths.append(student.weights)
    for source in run.beside.sources:
        if source.partition(":")[0] not in DRAWN:
            paths.append(source)
    return paths


def _check_beside(run: DemoRun, teacher: Classifier) -> None:
    """Whether there can be, and should be, a set of other sources."""
    beside = run.beside
    if not beside.images:
        return
    if not run.distillation.steps:
        raise EchosetError(
            "with distillation.steps 0 nobody is taught by what stands beside the set: leave "
            "beside.images at 0"
        )
    # A wrong name is told now, not after the synthesis.
    spec = teacher.spec
    cpu = torch.device("cpu")
    open_sources(beside.sources, spec.channels, spec.size, run.seed, cpu, run.quiet)


def _check_start(run: DemoRun) -> None:
    """Whether the student can start where it is told to."""
    if run.start == "fresh":
        if not run.distillation.steps:
            raise EchosetError(
                "a fresh student needs distillation.steps of at least 1; without any, the "
                "adversarial student can be the student: --start adversary"
            )
        return
    adversary = run.synthesis.adversary
    student = adversary.student
    if not adversary.keep:
        raise EchosetError(
            "--start adversary needs the adversarial student: add --synthesis.adversary.keep true"
        )
    if (run.student.model, run.student.arguments) != (student.model, student.arguments):
        raise EchosetError(
            "to start from the adversarial student, let --student and "
            f"--synthesis.adversary.student be the same (they are {_name(run.student)} and "
            f"{_name(student)})"
        )
    if run.student.weights:
        raise EchosetError(
            "--start adversary and --student.weights are two starts for one student; give one of "
            "them"
        )


def _name(student: StudentOptions) -> str:
    """A student's network and its arguments."""
    arguments = [f"{key}={value}" for key, value in student.arguments.items()]
    return " ".join([student.model, *arguments])
