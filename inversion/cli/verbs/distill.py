"""Train a student on a set."""

from __future__ import annotations

from pathlib import Path

from distill.data.corrupt import corrupt
from distill.data.images import as_images, join
from distill.learner import full_loss
from distill.models import save_classifier
from distill.students import build_student
from distill.train import distill as train_student
from distill.train import forget
from inversion.cli.schema import DistillRun
from inversion.cli.show import finish, new_table
from inversion.cli.verbs.shared import STUDENT, load_set
from inversion.teacher import load_teacher
from synthesis_kernels.errors import EchosetError


def execute(run: DistillRun) -> int:
    """Train a student and save it."""
    out = Path(run.out)
    path = out / STUDENT
    if path.resolve() in [
        Path(given).resolve() for given in (run.teacher.model, run.teacher.weights) if given
    ]:
        raise EchosetError(
            f"the student would be written over its teacher, {path}; choose another --out"
        )
    teacher = load_teacher(run.teacher)
    places = [place for place in (run.set, run.beside) if place]
    parts = [
        load_set(place, teacher, run.quiet, run.distillation.labels == "data") for place in places
    ]
    whence = " and ".join(places)
    for part, place in zip(parts, places, strict=True):
        if run.distillation.labels == "data" and part.labels is None:
            raise EchosetError(
                f"{place} has no labels to learn from; use --distillation.labels teacher"
            )
    data = join(map(as_images, parts, places), whence) if run.beside else parts[0]
    if run.corrupt != "none":
        if run.distillation.labels != "data":
            raise EchosetError(
                "--corrupt changes the data's labels, and the teacher's are used: add "
                "--distillation.labels data"
            )
        damaged = corrupt(
            as_images(data, whence), teacher.spec.classes, run.corrupt, run.seed, teacher.task
        )
        data = damaged.data
        if not run.quiet:
            print(damaged.report)
    student = build_student(run.student, teacher.contract, run.seed)
    learnt = train_student(student, data, teacher, run.distillation, folder=out, runtime=run)
    save_classifier(student, path)
    forget(out)
    table = new_table("Student", "", run.student.model)
    table.add_row("parameters", f"{student.parameters_count:,}")
    table.add_row("learnt from", f"{len(data):,} images of {whence}")
    table.add_row(
        "losses",
        " + ".join(
            f"{weight:g} {name}" for name, weight in full_loss(run.distillation.loss).items()
        ),
    )
    table.add_row("agreement", f"{learnt.agreement:.2%} of the last views")
    document = {
        "student": str(path),
        "agreement": learnt.agreement,
        "seconds": learnt.seconds,
        "steps": learnt.steps,
    }
    if learnt.held_out_agreement is not None:
        document["held_out_agreement"] = learnt.held_out_agreement
        table.add_row(
            "held-out agreement",
            f"{learnt.held_out_agreement:.2%}, the best of {learnt.steps} steps",
        )
    table.add_row("seconds", f"{learnt.seconds:.0f}")
    table.add_row("saved", str(path))
    return finish(run, table, document)
