"""The whole path on a teacher: set, student, accuracy, report."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from distill.data.images import Images, as_images, join
from distill.evaluation import check_fit
from distill.evaluation import evaluate as evaluate_classifier
from distill.files import write_json
from distill.learner import Learner
from distill.lessons import check_lesson
from distill.models import Classifier, save_classifier
from distill.options import StudentOptions
from distill.sets.transfer_set import MARKER
from distill.students import build_student
from distill.train import STATE, forget
from distill.train import distill as train_student
from inversion.cli.schema import DemoRun
from inversion.cli.show import finish, new_table
from inversion.cli.verbs.shared import STUDENT, load_test_data, require_balance, require_data
from inversion.driver import check_synthesis
from inversion.driver import synthesize as synthesize_set
from inversion.jobs import plan as plan_shards
from inversion.options import CollectOptions
from inversion.pages.report import told_of, weights_given, write_report
from inversion.recipes import find_recipe
from inversion.sources import DRAWN
from inversion.sources.collect import collect as collect_set
from inversion.sources.stream import open_sources
from inversion.teacher import inspect_teacher, load_teacher
from synthesis_kernels.backend import describe_device, describe_forms
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.step import resolve_step

DEMO_FILES = ("summary.json", "report.html", STUDENT, "log.jsonl")


def execute(run: DemoRun) -> int:
    """Teacher → set → student → accuracy → report."""
    began = time.perf_counter()
    out = Path(run.out)
    bundled = require_data(run.data, run.teacher)
    teacher = load_teacher(run.teacher)
    data = load_test_data(run.data, teacher, run.quiet)
    student = build_student(run.student, teacher.contract, run.seed)
    check_demo(run, teacher, student, data)
    keep, pool = run.synthesis.adversary.keep, run.synthesis.replay.keep_all
    _start_folder(out)

    transfer_set = synthesize_set(teacher, run.synthesis, out / "set", runtime=run)
    if transfer_set is None:
        raise EchosetError(f"{out / 'set'} is not complete; run the same command again")
    require_balance(transfer_set.manifest["short"], out / "set")
    taught, beside, collecting_seconds = as_images(transfer_set, "set"), None, 0.0
    if run.beside.images:
        taught, beside, collecting_seconds = _join_beside(run, teacher, taught)
    adversary, distillation_seconds = out / "set" / "adversary-00000.safetensors", 0.0
    if run.start == "adversary":
        student = build_student(
            dataclasses.replace(run.student, weights=str(adversary)), teacher.contract
        )
    if run.distillation.steps:
        # The student is trained on what was written, as anyone who is handed the set would train
        # it.
        distillation_seconds = train_student(
            student, taught, teacher, run.distillation, folder=out, runtime=run
        ).seconds
    save_classifier(student.eval(), out / STUDENT)

    evaluation_began = time.perf_counter()
    teacher_result = evaluate_classifier(teacher, data, runtime=run)
    student_result = evaluate_classifier(student, data, teacher, runtime=run)
    adversary_accuracy = None
    if keep:
        kept = build_student(
            dataclasses.replace(run.synthesis.adversary.student, weights=str(adversary)),
            teacher.contract,
        )
        adversary_accuracy = evaluate_classifier(kept, data, runtime=run).accuracy
    synthesis_seconds = sum(shard["seconds"] for shard in transfer_set.manifest["shards"])
    evaluation_seconds = time.perf_counter() - evaluation_began
    seconds = {
        "synthesis": synthesis_seconds,
        "collection": collecting_seconds,
        "distillation": distillation_seconds,
    }
    seconds["evaluation"] = evaluation_seconds
    summary = {
        "teacher_accuracy": teacher_result.accuracy,
        "student_accuracy": student_result.accuracy,
        "adversary_accuracy": adversary_accuracy,
        "agreement": student_result.agreement,
        "student_accuracy_per_class": student_result.per_class,
        "start": run.start,
        **told_of(run.distillation),
        "given_weights": weights_given(run.student, run.synthesis.adversary.student),
        "images": len(transfer_set),
        "per_class": transfer_set.counts(),
        "beside": beside,
        "teacher_parameters": teacher.parameters_count,
        "student_parameters": student.parameters_count,
        "test_images": data.name,
        "seed": run.seed,
        "device": describe_device(run.resolve_device()),
        "torch": torch.__version__,
        "command": shlex.join(["echoset", *sys.argv[1:]]),
        # Work of an earlier, stopped call of this command counts; its start-up doesn't.
        "seconds": {**seconds, "total": max(sum(seconds.values()), time.perf_counter() - began)},
        "report": str(out / "report.html"),
    }
    write_json(out / "summary.json", summary)
    write_report(out)
    forget(out)

    seen_before = (
        ", those that passed through the buffer too"
        if run.start == "adversary" and not pool
        else ""
    )
    table = new_table("Echoset demo", "", "teacher", "student")
    table.add_row("accuracy", f"{teacher_result.accuracy:.2%}", f"{student_result.accuracy:.2%}")
    table.add_row("parameters", f"{teacher.parameters_count:,}", f"{student.parameters_count:,}")
    others = ""
    if beside:
        lacking = (
            "" if beside["images"] == run.beside.images else f" of {run.beside.images:,} wanted"
        )
        others = f" and {beside['images']:,}{lacking} from {', '.join(beside['sources'])}"
    table.add_row(
        "learnt from",
        "60,000 real images" if bundled else "real images",
        f"{len(transfer_set):,} synthetic images{seen_before}{others}",
    )
    if keep:
        table.add_row("the adversarial student", "", f"{adversary_accuracy:.2%}")
    table.add_row("same decision", "", f"{student_result.agreement:.2%}")
    spent = ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items() if value)
    table.caption = f"judged on {data.name}\n{spent}\nreport: {summary['report']}"
    return finish(run, table, summary)


def _join_beside(
    run: DemoRun, teacher: Classifier, made: Images
) -> tuple[Images, dict[str, Any], float]:
    """The generator's images with those of other sources; what the summary says about the latter;
    and the seconds it took.
    """
    began, options = time.perf_counter(), CollectOptions(images=run.beside.images)
    others = collect_set(
        teacher, run.beside.sources, options, Path(run.out) / "beside", runtime=run
    )
    joined = join([made, as_images(others, "beside")], "set and beside")
    told = {
        "images": len(others),
        "sources": list(run.beside.sources),
        "per_class": others.counts(),
    }
    return joined, told, max(time.perf_counter() - began, others.manifest["collection"]["seconds"])


def check_demo(run: DemoRun, teacher: Classifier, fresh: Classifier, data: Images) -> None:
    """Whatever can be refused is refused before anything is deleted or computed."""
    check_fit(teacher, data)
    synthesis = check_synthesis(teacher, run.synthesis, run)
    jobs = plan_shards(synthesis, teacher.spec.classes)
    if run.distillation.steps:
        count = sum(sum(job.quotas) for job in jobs)
        to_be_made = Images(
            torch.zeros(1, 1, 1, 1).byte().expand(count, -1, -1, -1),
            torch.zeros(count).long(),
            "set",
        )
        check_lesson(fresh, to_be_made, teacher, run.distillation)
        Learner(fresh, teacher, run.distillation).check_step(run.step)
    describe_forms(run.resolve_device())
    resolve_step(run.step, run.resolve_device(), run.distillation.steps)
    inspect_teacher(teacher, find_recipe(run.synthesis.recipe).needs_batch_norm)
    keep, student = run.synthesis.adversary.keep, run.synthesis.adversary.student
    stored = [source for source in run.beside.sources if source.partition(":")[0] not in DRAWN]
    ours = {(Path(run.out) / name).resolve() for name in (*DEMO_FILES, STATE, "set", "beside")}
    teachers = [
        path for path in (run.teacher.model, run.teacher.weights) if path and Path(path).is_file()
    ]  # or it is a name
    for path in filter(None, [*teachers, run.student.weights, student.weights, *stored]):
        if ours & {Path(path).resolve(), *Path(path).resolve().parents}:
            raise EchosetError(
                f"{path} lies in {run.out}, where this demo writes and clears away; choose "
                "another --out"
            )
    same = (run.student.model, run.student.arguments) == (student.model, student.arguments)
    if run.start == "adversary" and not (keep and same):
        raise EchosetError(
            "to start from the adversarial student, add --synthesis.adversary.keep true, and let "
            "--student and "
            f"--synthesis.adversary.student be the same (they are {_words(run.student)} and "
            f"{_words(student)})"
        )
    if run.start == "adversary" and run.student.weights:
        raise EchosetError(
            "--start adversary and --student.weights are two starts for one student; give one of "
            "them"
        )
    if run.beside.images < 0:
        raise EchosetError(f"beside.images must be at least 0, got {run.beside.images}")
    if run.beside.images and not run.distillation.steps:
        raise EchosetError(
            "with distillation.steps 0 nobody is taught by what stands beside the set: leave "
            "beside.images at 0"
        )
    if run.beside.images:  # a wrong name is told now, not after the synthesis
        spec = teacher.spec
        open_sources(
            run.beside.sources, spec.channels, spec.size, run.seed, torch.device("cpu"), run.quiet
        )
    if run.start == "fresh" and not run.distillation.steps:
        raise EchosetError(
            "a fresh student needs distillation.steps of at least 1; without any, the adversarial "
            "student can be the "
            "student: --start adversary"
        )
    if keep and len(jobs) > 1:
        raise EchosetError(
            "an adversarial student learns one shard, and these are several: raise "
            "--synthesis.shard_images to "
            f"{run.synthesis.images}"
        )


def _words(student: StudentOptions) -> str:
    return " ".join(
        [student.model, *(f"{key}={value}" for key, value in student.arguments.items())]
    )


def _start_folder(out: Path) -> None:
    """Keep what a stopped demo left; clear away a finished one, and nothing that isn't a demo's."""
    summary = out / "summary.json"
    if not (out / "set" / "manifest.json").is_file() and (out / STATE).is_file():
        if not (out / "set" / MARKER).is_file():
            raise EchosetError(
                f"{out} holds a stopped distillation ({STATE}) that no demo began, or whose set "
                "is gone; choose another --out, or "
                "delete that file"
            )
        forget(out)  # of a set that is gone
    if not summary.is_file():
        return
    if not (out / "set" / MARKER).is_file() or "student_accuracy" not in (
        content := summary.read_text()
    ):
        raise EchosetError(f"{out} holds a summary.json that no demo wrote; choose another --out")
    if not (out / "report.html").is_file():  # stopped at its last step
        return
    for name in DEMO_FILES:
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "set", ignore_errors=True)
    if '"beside": {' in content:
        shutil.rmtree(out / "beside", ignore_errors=True)
    forget(out)
