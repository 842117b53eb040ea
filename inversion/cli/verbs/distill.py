"""Train a student on a set."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.data.corrupt import corrupt
from distill.data.images import Images, as_images, join
from distill.files import hash_file, load_state, unseal, write_sealed
from distill.lesson_key import lesson_key
from distill.losses import full_loss
from distill.models import Classifier, save_classifier
from distill.sets.transfer_set import TransferSet
from distill.students import build_student
from distill.team import Team, team_of
from distill.tracking import open_tracker
from distill.train import STATE, forget
from distill.train import distill as train_student
from inversion.cli.show import finish, new_table
from inversion.cli.verbs.answering import needs_no_teacher, saying_what_is_carried
from inversion.cli.verbs.judged import judge_student, name_of, tell_student
from inversion.cli.verbs.own_folder import own_folder
from inversion.cli.verbs.shared import STUDENT, load_set, teacher_for
from inversion.health import check_health
from inversion.pages.judging import JUDGED, STUDENT_FILE
from inversion.teacher import BUNDLED, load_teacher
from inversion.teacher_file import spell_out
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.terminal import plain

if TYPE_CHECKING:
    from rich.table import Table

    from distill.result import DistillResult
    from inversion.cli.schema import DistillRun

DONE = ".student.done"
"""Beside a finished student: which command made it, and what was said of it."""
WRITTEN = (STUDENT, STATE, JUDGED, STUDENT_FILE, "log.jsonl")
"""What a distillation writes in its folder."""


def execute(run: DistillRun) -> int:
    """Train a student and save it: one process alone, or several, which share each batch."""
    with team_of(run) as team:
        return _execute(replace(run, quiet=run.quiet or not team.is_first), team)


def _execute(run: DistillRun, team: Team) -> int:
    out = Path(run.out)
    path = out / STUDENT
    _check_teacher_stays(run, path)
    teacher = None if needs_no_teacher(run) else _load_teacher(run)
    data = _load_data(run, teacher)
    student = build_student(run.student, _contract(teacher, data), run.seed)
    if run.corrupt != "none":
        data = _damage(run, data, student)
    if not team.is_first:
        return _help(run, student, data, teacher, team)
    with own_folder(out, "distill", WRITTEN, run.overwrite):
        return _teach(run, student, data, teacher, team)


def _help(
    run: DistillRun,
    student: Classifier,
    data: TransferSet | Images,
    teacher: Classifier | None,
    team: Team,
) -> int:
    """Take part in the training, where the first process says that there is one."""
    if team.told(lambda: True):
        lesson = (student, data, teacher, run.distillation)
        train_student(*lesson, folder=run.out, runtime=run, team=team)
    return 0


def _teach(
    run: DistillRun,
    student: Classifier,
    data: TransferSet | Images,
    teacher: Classifier | None,
    team: Team,
) -> int:
    """Train the student in a folder that is this process's own."""
    out = Path(run.out)
    path = out / STUDENT
    _require_own_student(out, run.overwrite)
    finished = _finished(run, student, data, teacher, team)
    team.told(lambda: finished is None)
    if finished is not None:
        line = (
            f"{path} was finished already by this command, and stays as it is. Judge it: echoset "
            f"evaluate --model {path} --data DIR; teach another one: --out"
        )
        return finish(run, None, finished, line)
    result = train_student(
        student,
        data,
        teacher,
        run.distillation,
        folder=out,
        runtime=run,
        log=open_tracker(run.track, out),
        team=team,
    )
    (out / DONE).unlink(missing_ok=True)  # of an earlier student
    save_classifier(student, path)
    write_sealed(out / JUDGED, judge_student(student, teacher, data, run, _say_places(run)))
    document = _document(path, result)
    figures = {
        "parameters": student.parameters_count,
        "teacher_parameters": None if teacher is None else teacher.parameters_count,
        "images": len(data),
        "learnt_from": _say_places(run),
        "losses": _say_losses(run),
    }
    write_sealed(out / STUDENT_FILE, tell_student(run, _name(teacher, data), **figures, **document))
    write_sealed(out / DONE, {"key": result.key, "sha256": hash_file(path), "document": document})
    forget(out)
    return finish(run, _new_table(run, figures, document), document)


def _require_own_student(out: Path, overwrite: bool) -> None:
    """Refuse to write over a student that somebody has put in the place of the folder's own."""
    note = _read_note(out)
    path = out / STUDENT
    if note is None or overwrite or not path.is_file():
        return
    if note.get("sha256") != hash_file(path):
        raise EchosetError(
            f"{path} is not the student that was made there; choose another --out, or have it "
            "written over: --overwrite"
        )


def _read_note(out: Path) -> dict[str, Any] | None:
    """What was noted of the folder's student; None where there is no whole note."""
    try:
        return unseal(json.loads((out / DONE).read_text()))
    except (OSError, ValueError, RecursionError):
        return None


def _finished(
    run: DistillRun,
    student: Classifier,
    data: TransferSet | Images,
    teacher: Classifier | None,
    team: Team,
) -> dict[str, Any] | None:
    """What was said of the student there, if this very command has made it. One that another
    command has made is kept, unless it may be written over.
    """
    note = _read_note(Path(run.out))
    if note is None or not (Path(run.out) / STUDENT).is_file():
        return None
    key = lesson_key(student, data, teacher, run.distillation, run, team=team)
    if note.get("key") == key:
        _forget_own(Path(run.out), key)
        return note["document"]
    if not run.overwrite:
        raise EchosetError(
            f"{Path(run.out) / STUDENT} was made by another command, of another set, teacher or "
            "options, or on another kind of machine; choose another --out, or have it written "
            "over: --overwrite"
        )
    return None


def _forget_own(out: Path, key: str) -> None:
    """Delete the state that a command left which was killed at its very end."""
    with contextlib.suppress(EchosetError):  # of another command, which may go on
        if load_state(out / STATE, key) is not None:
            forget(out)


def _document(path: Path, result: DistillResult) -> dict[str, Any]:
    """The last line of --json."""
    document: dict[str, Any] = {
        "student": str(path),
        "agreement": result.agreement,
        "seconds": result.seconds,
        "steps": result.steps,
    }
    if result.held_out_agreement is not None:
        document["held_out_agreement"] = result.held_out_agreement
    return document


def _new_table(run: DistillRun, figures: dict[str, Any], document: dict[str, Any]) -> Table:
    """What was trained, and how well it agrees with the teacher."""
    table = new_table("Student", "", run.student.model)
    table.add_row("parameters", f"{figures['parameters']:,}")
    table.add_row("learnt from", f"{figures['images']:,} images of {figures['learnt_from']}")
    table.add_row("losses", figures["losses"])
    table.add_row("agreement", f"{document['agreement']:.2%} of the last views")
    held_out = document.get("held_out_agreement")
    if held_out is not None:
        best = f"{held_out:.2%}, the best of {document['steps']} steps"
        table.add_row("held-out agreement", best)
    table.add_row("seconds", f"{document['seconds']:.0f}")
    table.add_row("saved", document["student"])
    return table


def _name(teacher: Classifier | None, data: TransferSet | Images) -> str:
    """How the teacher is called, be it only in the set that it made."""
    if teacher is not None:
        return name_of(teacher)
    assert isinstance(data, TransferSet), "without a teacher, students learn from its sets alone"
    return str(data.manifest["teacher"].get("model"))


def _say_losses(run: DistillRun) -> str:
    losses = full_loss(run.distillation.loss)
    return " + ".join(f"{weight:g} {name}" for name, weight in losses.items())


def _load_teacher(run: DistillRun) -> Classifier:
    """The teacher that is asked."""
    with saying_what_is_carried(run):
        teacher = load_teacher(teacher_for(run.teacher, _places(run)), trust=run.trust)
    check_health(teacher, run)
    return teacher


def _contract(teacher: Classifier | None, data: TransferSet | Images) -> dict[str, Any]:
    """What the student is to take and give."""
    if teacher is not None:
        return teacher.input
    assert isinstance(data, TransferSet), "without a teacher, students learn from its sets alone"
    return dict(data.manifest["input"])


def _check_teacher_stays(run: DistillRun, path: Path) -> None:
    """Refuse to write the student over its teacher."""
    try:
        named = spell_out(teacher_for(run.teacher, _places(run)), BUNDLED, trust=True).options
    except EchosetError:  # it can't be found, which is told where it is needed
        return
    for given in (named.model, named.weights):
        if given and Path(given).resolve() == path.resolve():
            raise EchosetError(
                f"the student would be written over its teacher, {path}; choose another --out"
            )


def _places(run: DistillRun) -> list[str]:
    if run.beside is None:
        return [run.set]
    return [run.set, run.beside]


def _say_places(run: DistillRun) -> str:
    return " and ".join(_places(run))


def _load_data(run: DistillRun, teacher: Classifier | None) -> TransferSet | Images:
    """The set, together with what stands beside it."""
    if teacher is None:
        return TransferSet.load(run.set)
    needs_labels = run.distillation.labels == "data"
    parts = []
    for place in _places(run):
        part = load_set(place, teacher, run.quiet, needs_labels, run.void)
        if needs_labels and part.labels is None:
            raise EchosetError(
                f"{place} has no labels to learn from; use --distillation.labels teacher"
            )
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return join(map(as_images, parts, _places(run)), _say_places(run))


def _damage(run: DistillRun, data: TransferSet | Images, student: Classifier) -> Images:
    """The data with labels changed as --corrupt says."""
    if run.distillation.labels != "data":
        raise EchosetError(
            "--corrupt changes the data's labels, and the teacher's are used: add "
            "--distillation.labels data"
        )
    images = as_images(data, _say_places(run))
    damaged = corrupt(images, student.spec.classes, run.corrupt, run.seed, student.task)
    if not run.quiet:
        print(plain(damaged.report))
    return damaged.data
