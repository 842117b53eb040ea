"""The whole path on a teacher: set, student, accuracy, report."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.data.images import Images, as_images, join
from distill.files import write_sealed
from distill.models import Classifier, save_classifier
from distill.sets.transfer_set import MARKER, TransferSet
from distill.students import build_student
from distill.tracking import Logger, open_tracker
from distill.train import STATE, forget
from distill.train import distill as train_student
from inversion.cli.show import command_line, finish, new_table
from inversion.cli.verbs.answering import carry_answers, check_answers
from inversion.cli.verbs.balance import fill, require_balance
from inversion.cli.verbs.demo_checks import DEMO_FILES, check_demo
from inversion.cli.verbs.demo_judging import (
    Verdict,
    data_to_judge_on,
    judge_demo,
    load_adversary,
)
from inversion.cli.verbs.judged import name_of, tell_student
from inversion.cli.verbs.own_folder import own_folder
from inversion.cli.verbs.shared import STUDENT, is_bundled
from inversion.driver import synthesize_share
from inversion.health import check_health
from inversion.options import CollectOptions
from inversion.pages.extremes import nearest_real
from inversion.pages.judging import JUDGED, STUDENT_FILE
from inversion.pages.report import told_of, weights_given, write_report
from inversion.pages.run_sections import own_rows
from inversion.sources.collect import collect as collect_set
from inversion.teacher import load_teacher
from synthesis_kernels.backend import describe_device
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from rich.table import Table

    from inversion.cli.schema import DemoRun


@dataclass(frozen=True)
class Outcome:
    """What a demo made, and how it was judged."""

    transfer_set: TransferSet
    beside: TransferSet | None
    """The set of other sources, where there is one."""
    teacher: Classifier
    student: Classifier
    verdict: Verdict
    seconds: dict[str, float]
    """By stage, and in total."""


def execute(run: DemoRun) -> int:
    """Teacher → set → student → accuracy → report."""
    began = time.perf_counter()
    out = Path(run.out)
    teacher = load_teacher(run.teacher, trust=run.trust)
    check_health(teacher, run)
    data, teacher_logits = data_to_judge_on(run, teacher)
    student = build_student(run.student, teacher.input, run.seed)
    check_demo(run, teacher, student, data)
    check_answers(run.answers, teacher, run.synthesis.images)
    with own_folder(out, "demo", (*DEMO_FILES, STATE, "set", "beside"), run.overwrite):
        _start_folder(out)
        return _make(run, began, teacher, student, data, teacher_logits)


def _make(
    run: DemoRun,
    began: float,
    teacher: Classifier,
    student: Classifier,
    data: Images,
    teacher_logits: torch.Tensor | None,  # (N, K, *places)
) -> int:
    """Set, student, judgement and report, in a folder that is ready for them."""
    out = Path(run.out)
    seconds: dict[str, float] = {}
    logger = open_tracker(run.track, out)
    transfer_set = _make_set(run, teacher, logger)
    seconds["synthesis"] = sum(shard["seconds"] for shard in transfer_set.manifest["shards"])
    beside, seconds["collection"] = _collect_beside(run, teacher)
    if run.start == "adversary":
        student = load_adversary(run, run.student, teacher)
    seconds["distillation"] = _teach(run, teacher, student, transfer_set, beside, logger)
    save_classifier(student.eval(), out / STUDENT)

    evaluation_began = time.perf_counter()
    verdict = judge_demo(run, teacher, student, data, teacher_logits)
    if verdict.teacher is not None:  # there are real images
        verdict.judged["nearest"] = nearest_real(transfer_set, data.images, data.name)
    seconds["evaluation"] = time.perf_counter() - evaluation_began
    # Work of an earlier, stopped call of this command counts; its start-up doesn't.
    seconds["total"] = max(sum(seconds.values()), time.perf_counter() - began)

    outcome = Outcome(transfer_set, beside, teacher, student, verdict, seconds)
    summary = _summarise(run, outcome)
    write_sealed(out / JUDGED, verdict.judged)
    write_sealed(out / STUDENT_FILE, tell_student(run, name_of(teacher)))
    write_sealed(out / "summary.json", summary)
    write_report(out)
    forget(out)
    return finish(run, _new_table(run, summary), summary)


def _start_folder(out: Path) -> None:
    """Keep what a stopped demo left; clear away a finished one, and nothing that isn't a demo's."""
    summary = out / "summary.json"
    set_was_begun = (out / "set" / MARKER).is_file()
    if not (out / "set" / "manifest.json").is_file() and (out / STATE).is_file():
        if not set_was_begun:
            raise EchosetError(
                f"{out} holds a stopped distillation ({STATE}) that no demo began, or whose set "
                "is gone; choose another --out, or delete that file"
            )
        forget(out)  # of a set that is gone
    if not summary.is_file():
        return
    content = summary.read_text() if set_was_begun else ""
    if "student_accuracy" not in content:
        raise EchosetError(f"{out} holds a summary.json that no demo wrote; choose another --out")
    if not (out / "report.html").is_file():  # stopped at its last step
        return
    for name in DEMO_FILES:
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "set", ignore_errors=True)
    if '"beside": {' in content:
        shutil.rmtree(out / "beside", ignore_errors=True)
    forget(out)


def _make_set(run: DemoRun, teacher: Classifier, logger: Logger | None) -> TransferSet:
    """The generator's set, complete and balanced."""
    folder = Path(run.out) / "set"
    transfer_set = synthesize_share(teacher, run.synthesis, folder, runtime=run, log=logger)
    assert transfer_set is not None, "a demo runs alone"
    transfer_set = fill(run, transfer_set, teacher, folder)
    require_balance(run, transfer_set, folder)
    return carry_answers(run, transfer_set, teacher, folder, run.distillation)


def _collect_beside(run: DemoRun, teacher: Classifier) -> tuple[TransferSet | None, float]:
    """The set of other sources, if one is wanted, and the seconds it took."""
    if not run.beside.images:
        return None, 0.0
    began = time.perf_counter()
    options = CollectOptions(images=run.beside.images)
    folder = Path(run.out) / "beside"
    beside = collect_set(teacher, run.beside.sources, options, folder, runtime=run)
    spent = time.perf_counter() - began
    return beside, max(spent, beside.manifest["collection"]["seconds"])


def _teach(
    run: DemoRun,
    teacher: Classifier,
    student: Classifier,
    transfer_set: TransferSet,
    beside: TransferSet | None,
    logger: Logger | None,
) -> float:
    """Train the student on what was written, as anyone who is handed the sets would; the seconds it
    took.
    """
    if not run.distillation.steps:
        return 0.0
    images: TransferSet | Images = transfer_set
    if beside is not None:
        both = [as_images(transfer_set, "set"), as_images(beside, "beside")]
        images = join(both, "set and beside")
    folder = Path(run.out)
    result = train_student(
        student, images, teacher, run.distillation, folder=folder, runtime=run, log=logger
    )
    return result.seconds


def _summarise(run: DemoRun, outcome: Outcome) -> dict[str, Any]:
    """What `summary.json` says, and the last line of --json."""
    verdict = outcome.verdict
    labelled = verdict.teacher is not None
    return {
        "teacher_accuracy": verdict.teacher.accuracy if verdict.teacher else None,
        "student_accuracy": verdict.student.accuracy if labelled else None,
        **_own_figures(verdict),
        "adversary_accuracy": verdict.adversary_accuracy,
        "agreement": verdict.student.agreement,
        "student_accuracy_per_class": verdict.student.per_class if labelled else None,
        "start": run.start,
        **told_of(run.distillation),
        "given_weights": weights_given(run.student, run.synthesis.adversary.student),
        "images": len(outcome.transfer_set),
        "per_class": outcome.transfer_set.counts(),
        "beside": _summarise_beside(run, outcome.beside),
        "teacher_parameters": outcome.teacher.parameters_count,
        "student_parameters": outcome.student.parameters_count,
        "test_images": verdict.test_images,
        "seed": run.seed,
        "device": describe_device(run.resolve_device()),
        "torch": torch.__version__,
        "command": command_line(),
        "seconds": outcome.seconds,
        "report": str(Path(run.out) / "report.html"),
    }


def _own_figures(verdict: Verdict) -> dict[str, Any]:
    """Figures of the task's own, by name: the teacher's and the student's."""
    if verdict.teacher is None or not verdict.teacher.own:
        return {}
    pairs = {}
    for name, value in verdict.teacher.own.items():
        pairs[name] = [value, verdict.student.own[name]]
    return {"own": pairs}


def _summarise_beside(run: DemoRun, beside: TransferSet | None) -> dict[str, Any] | None:
    if beside is None:
        return None
    return {
        "images": len(beside),
        "sources": list(run.beside.sources),
        "per_class": beside.counts(),
    }


def _new_table(run: DemoRun, summary: dict[str, Any]) -> Table:
    """Teacher and student side by side."""
    table = new_table("Echoset demo", "", "teacher", "student")
    accuracies = summary["teacher_accuracy"], summary["student_accuracy"]
    if None not in accuracies:
        for row in own_rows(summary):
            table.add_row(*row)
        table.add_row("accuracy", *(f"{accuracy:.2%}" for accuracy in accuracies))
    parameters = f"{summary['teacher_parameters']:,}", f"{summary['student_parameters']:,}"
    table.add_row("parameters", *parameters)
    teachers_images = "60,000 real images" if is_bundled(run.teacher) else "real images"
    table.add_row("learnt from", teachers_images, _say_images(run, summary))
    if summary["adversary_accuracy"] is not None:
        table.add_row("the adversarial student", "", f"{summary['adversary_accuracy']:.2%}")
    table.add_row("same decision", "", f"{summary['agreement']:.2%}")
    stages = {stage: value for stage, value in summary["seconds"].items() if stage != "total"}
    spent = ", ".join(f"{stage} {value:.0f} s" for stage, value in stages.items() if value)
    judged = f"judged on {summary['test_images']}"
    if None in accuracies:
        judged += "; for accuracies give labelled test images with --data"
    table.caption = f"{judged}\n{spent}\nreport: {summary['report']}"
    return table


def _say_images(run: DemoRun, summary: dict[str, Any]) -> str:
    """What the student has learnt from."""
    text = f"{summary['images']:,} synthetic images"
    if run.start == "adversary" and not run.synthesis.replay.keep_all:
        text += ", those that passed through the buffer too"
    beside = summary["beside"]
    if beside is None:
        return text
    text += f" and {beside['images']:,}"
    if beside["images"] != run.beside.images:
        text += f" of {run.beside.images:,} wanted"
    return f"{text} from {', '.join(beside['sources'])}"
