"""What each verb does, once its options are parsed: call the library, show a table, perhaps print
JSON.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from distill.data.corrupt import corrupt
from distill.data.images import Images, as_images, join, load_images
from distill.evaluation import check_fit, predict
from distill.evaluation import evaluate as evaluate_classifier
from distill.files import write_json
from distill.learner import Learner, full_loss
from distill.lessons import check_lesson
from distill.models import Classifier, save_classifier
from distill.options import StudentOptions, StudyOptions
from distill.sets.exports import export as export_set
from distill.sets.exports import merge, subsample
from distill.sets.transfer_set import MARKER, TransferSet, is_set, raw_counts
from distill.study import plan, run_study, summarise
from distill.train import STATE, build_student, forget
from distill.train import distill as train_student
from inversion.cli.schema import (
    BenchRun,
    CollectRun,
    Common,
    DemoRun,
    DistillRun,
    EvaluateRun,
    ExportRun,
    InspectRun,
    ReportRun,
    ScoreRun,
    StudyRun,
    SynthesizeRun,
    VerifyRun,
)
from inversion.driver import check_synthesis
from inversion.driver import synthesize as synthesize_set
from inversion.jobs import plan as plan_shards
from inversion.options import CollectOptions, TeacherOptions
from inversion.pages.report import told_of, weights_given, write_report
from inversion.pages.scores import (
    Scored,
    ranked,
    score_rows,
    validation_notes,
    validation_rows,
    write_scores,
)
from inversion.pages.study import grid, write_study
from inversion.recipes import find_recipe
from inversion.scoring.scorecard import check_counts, check_images
from inversion.scoring.scorecard import check_options as check_score_options
from inversion.scoring.scorecard import score as score_images
from inversion.scoring.scores import OVERALL, definitions
from inversion.scoring.validation import check_sets, validate
from inversion.sources import DRAWN
from inversion.sources.collect import collect as collect_set
from inversion.sources.stream import open_sources
from inversion.teacher import MNIST_SLICE, check_shape, inspect_teacher, load_teacher, trained_views
from synthesis_kernels.backend import describe_device, describe_forms
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.step import resolve_step

STUDENT = "student.safetensors"
DEMO_FILES = ("summary.json", "report.html", STUDENT, "log.jsonl")


def demo(run: DemoRun) -> int:
    """Teacher → set → student → accuracy → report."""
    began = time.perf_counter()
    out = Path(run.out)
    bundled = _require_data(run.data, run.teacher)
    teacher = load_teacher(run.teacher)
    data = _test_data(run.data, teacher, run.quiet)
    student = build_student(run.student, teacher.contract, run.seed)
    _check_demo(run, teacher, student, data)
    keep, pool = run.synthesis.adversary.keep, run.synthesis.replay.keep_all
    _start_demo_folder(out)

    transfer_set = synthesize_set(teacher, run.synthesis, out / "set", runtime=run)
    if transfer_set is None:
        raise EchosetError(f"{out / 'set'} is not complete; run the same command again")
    _require_balance(transfer_set.manifest["short"], out / "set")
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
    table = _table("Echoset demo", "", "teacher", "student")
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
    return _finish(run, table, summary)


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


def inspect(run: InspectRun) -> int:
    """Load a teacher, look it over, say what was found."""
    found = inspect_teacher(load_teacher(run.teacher))
    spec = found.spec
    table = _table(f"Teacher {spec.model}", "", "found")
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("input", f"{spec.channels} × {spec.size} × {spec.size}, in [0, 1]")
    table.add_row("classes", str(spec.classes))
    table.add_row("normalisation", f"mean {list(spec.mean)}, std {list(spec.std)}")
    table.add_row(
        "BatchNorm layers",
        f"{len(found.layers)} ({', '.join(f'{n} {k}' for k, n in found.kinds.items())})",
    )
    for name, channels in found.layers.items():
        table.add_row("", f"{name}: {channels} channels")
    table.add_row("dead channels", str(found.dead_channels))
    table.add_row("weights SHA-256", found.weight_hash[:16] + "…")
    for key, value in spec.notes.items():
        table.add_row(key, str(value))
    table.add_row("warnings", "\n".join(found.warnings) or "none")
    return _finish(run, table, dataclasses.asdict(found))


def synthesize(run: SynthesizeRun) -> int:
    """Make a set, or this process's part of one."""
    teacher = load_teacher(run.teacher)
    made = synthesize_set(teacher, run.synthesis, run.out, runtime=run)
    if made is None:
        return _finish(
            run,
            None,
            {"set": run.out, "complete": False},
            f"part {run.rank} of {run.world} is done; others are not yet",
        )
    document = {
        "set": run.out,
        "complete": True,
        "images": len(made),
        "per_class": made.counts(),
        "short": made.manifest["short"],
    }
    document["seconds"] = sum(shard["seconds"] for shard in made.manifest["shards"])
    table = _table(f"Transfer set {run.out}", "class", "images")
    for label, count in enumerate(made.counts()):
        table.add_row(str(label), str(count))
    table.caption = f"{len(made):,} images in {document['seconds']:.0f} s"
    status = _finish(run, table, document)
    _require_balance(document["short"], run.out)
    return status


def collect(run: CollectRun) -> int:
    """Choose a set from sources."""
    made = collect_set(load_teacher(run.teacher), run.sources, run.collection, run.out, runtime=run)
    found = made.manifest["collection"]
    document = {"set": run.out, "images": len(made), "per_class": made.counts(), **found}
    ways = list(found["taken"])
    table = _table(
        f"Transfer set {run.out}", "class", "drawn", "accepted", "full after", *ways, "in the set"
    )
    for label, count in enumerate(made.counts()):
        full = found["needed"][label]
        drawn = (
            str(found["raw_counts"][label]),
            str(found["accepted"][label]),
            f"{full:,}" if full else "–",
        )
        table.add_row(
            str(label), *drawn, *(str(found["taken"][way][label]) for way in ways), str(count)
        )
    exposed = [f"{share:.0%} of {address}" for address, share in found["exposed"].items() if share]
    table.caption = (
        f"{found['drawn']:,} images drawn, {len(made):,} in the set, {found['seconds']:.0f} s; "
        "class coverage before choosing "
        f"{found['raw_coverage']:.3f}{'; shown as figures on black: ' + ', '.join(exposed) if exposed else ''}"
    )
    status = _finish(run, table, document)
    if found["missing"]:
        lacks = ", ".join(f"class {label} lacks {count}" for label, count in found["short"].items())
        turned_away = found["drawn"] - sum(found["accepted"])
        window = (
            f"; {turned_away:,} of {found['drawn']:,} lay outside confidence, margin or only"
            if turned_away
            else ""
        )
        way = (
            ""
            if not run.collection.balanced
            else ", or a further way of filling classes to --short"
        )
        raise EchosetError(
            f"{run.out} is written but {found['missing']} images "
            f"short{f': {lacks}' if lacks else ''}{window}. "
            f"Add a --source, raise --collection.draws where a source has no end{way}"
        )
    return status


def distill(run: DistillRun) -> int:
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
        _load_set(place, teacher, run.quiet, run.distillation.labels == "data") for place in places
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
        damaged = corrupt(as_images(data, whence), teacher.spec.classes, run.corrupt, run.seed)
        data = damaged.data
        if not run.quiet:
            print(damaged.report)
    student = build_student(run.student, teacher.contract, run.seed)
    learnt = train_student(student, data, teacher, run.distillation, folder=out, runtime=run)
    save_classifier(student, path)
    forget(out)
    table = _table("Student", "", run.student.model)
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
    return _finish(run, table, document)


def evaluate(run: EvaluateRun) -> int:
    """Accuracy of one model, and its agreement with another."""
    if run.attacks and not run.against:
        raise EchosetError("--attacks compares two networks: name the second with --against")
    model = load_teacher(run.model)
    other = load_teacher(run.against) if run.against else None
    check_shape(model, "--model")
    if other:
        check_shape(other, "--against")
    data = _test_data(run.data, model, run.quiet)
    result = evaluate_classifier(
        model, data, other, attacks=run.attacks if other else 0, runtime=run
    )
    name = run.model.weights or run.model.model
    table = _table(f"{name} on {data.name}", "", "")
    table.add_row("accuracy", f"{result.accuracy:.2%}")
    if result.top5 is not None:
        table.add_row("among the first five", f"{result.top5:.2%}")
    table.add_row("calibration error", f"{result.ece:.4f}")
    table.add_row("mean entropy, nats", f"{result.entropy:.4f}")
    if result.agreement is not None:
        table.add_row(
            f"same decision as {run.against.weights or run.against.model}",
            f"{result.agreement:.2%}",
        )
    if result.magnitude_similarity is not None:
        table.add_row(
            "boundary similarity, size",
            f"{result.magnitude_similarity:.3f} ({result.boundary_pairs} pushes)",
        )
        table.add_row("boundary similarity, direction", f"{result.angle_similarity:.3f}")
    if result.transfer is not None:
        table.add_row(
            "adversarial transfer",
            f"{result.transfer:.2%} (of the teacher itself {result.transfer_teacher:.2%})",
        )
    for label, accuracy in enumerate(result.per_class):
        table.add_row(f"class {label}", "no images" if accuracy is None else f"{accuracy:.2%}")
    return _finish(run, table, {"model": name, "data": data.name, **dataclasses.asdict(result)})


def study(run: StudyRun) -> int:
    """Fill the grid, then show and write what there is."""
    _require_data(run.data, run.teacher)
    teacher, out = load_teacher(run.teacher), Path(run.out)
    data = _test_data(run.data, teacher, run.quiet)
    labelled = run.distillation.labels == "data" or run.study.images > 0  # drawn evenly by them
    sets = {name: _load_set(path, teacher, run.quiet, labelled) for name, path in run.sets.items()}
    cells, wanted = _fill_grid(run, teacher, sets, data, out, run.study)
    rows = summarise(cells)
    command = shlex.join(["echoset", *sys.argv[1:]])
    document = {"command": command, "cells": len(cells), "of": wanted, "rows": rows}
    if len(cells) < wanted:
        return _finish(
            run,
            None,
            document,
            f"{len(cells)} of {wanted} cells are done; this process's part is complete",
        )
    runs = [{k: v for k, v in cell.items() if k not in ("key", "per_class")} for cell in cells]
    write_json(out / "study.json", {**document, "runs": runs})
    write_study(rows, command, out / "study.html")
    for name in dict.fromkeys(row["set"] for row in rows):
        head, *body = grid(rows, name)
        table = _table(f"{name}: accuracy, %", *head)
        for line in body:
            table.add_row(*line)
        mine = [cell for cell in cells if cell["set"] == name]
        reports = dict.fromkeys(
            f"{cell['corruption']}, seed {cell['seed']}: {cell['report']}" for cell in mine
        )
        table.caption = "\n".join(reports)
        if not run.quiet:
            Console(markup=False).print(table)
    return _finish(run, None, document, f"page: {out / 'study.html'}")


def score(run: ScoreRun) -> int:
    """Score every set, show them side by side, and with --validate say how far the scores can be
    trusted.
    """
    if not run.sets:
        raise EchosetError(
            "there is nothing to score; name sets: echoset score runs/set leaves=runs/leaves"
        )
    if run.images < 0:
        raise EchosetError(f"images must be at least 0, got {run.images}")
    if not run.out.endswith(".html"):
        raise EchosetError(f"--out is the page to write and should end in .html, got {run.out}")
    if run.validate:
        check_sets(run.sets)
        _require_data(run.data, run.teacher)
    check_score_options(run.scores)
    teacher, page = load_teacher(run.teacher), Path(run.out)
    check_shape(teacher)
    trained_views(teacher.spec)
    sets, drawn = {}, {}
    for name, path in run.sets.items():
        data = _load_set(path, teacher, run.quiet, labelled=False)
        drawn[name] = _raw_counts(data, path, teacher.spec.classes)
        sets[name] = _evenly(as_images(data, path), run.images)
        check_images(sets[name].images, teacher, path)
    cells: list[dict[str, Any]] = []
    if run.validate:
        options = StudyOptions(methods=("hinton",), seeds=run.seeds, attacks=0)
        cells, wanted = _fill_grid(
            run,
            teacher,
            sets,
            _test_data(run.data, teacher, run.quiet),
            page.with_suffix(""),
            options,
        )
        if len(cells) < wanted:
            return _finish(
                run,
                None,
                {"complete": False},
                "this process's students are finished, others' are not yet",
            )
    scored = {}
    for name, data in sets.items():
        if not run.quiet:
            print(f"scoring {name}, {len(data):,} images", file=sys.stderr)
        card = score_images(data.images, teacher, drawn[name], run.scores, runtime=run)
        scored[name] = Scored(run.sets[name], data.images, card)
    command = shlex.join(["echoset", *sys.argv[1:]])
    found = (
        validate({name: one.card for name, one in scored.items()}, cells) if run.validate else None
    )
    document: dict[str, Any] = {
        "command": command,
        "ranked": ranked(scored),
        "definitions": definitions(),
        "overall": OVERALL,
    }
    document |= {"device": describe_device(run.resolve_device()), "torch": torch.__version__}
    document["sets"] = {
        name: {"path": one.path, **one.card.document()} for name, one in scored.items()
    }
    if found is not None:
        original = [
            cell["accuracy"]
            for cell in cells
            if cell["set"] == "original" and cell["method"] == "hinton"
        ]
        found["original"] = sum(original) / len(original) if original else None
        document["validation"] = found
        document["study"] = [
            {k: v for k, v in cell.items() if k not in ("key", "per_class")} for cell in cells
        ]
        write_json(page.with_suffix("") / "validation.json", document)
    write_scores(scored, command, page, found)
    if found is not None and not run.quiet:
        Console(markup=False).print(_validation_table(found))
    names, width = document["ranked"], max(9, *map(len, scored)) + 3
    abreast = max(1, (Console().width - 30) // width)  # as many sets as stand side by side
    for start in range(0, 0 if run.quiet else len(names), abreast):
        Console(markup=False).print(
            _rows_table("Scorecard", score_rows(scored, names[start : start + abreast]))
        )
    return _finish(run, None, document, f"{OVERALL}\npage: {page}")


def _raw_counts(
    data: TransferSet | Images, path: str, classes: int
) -> list[int] | Literal["own"] | None:
    """The teacher's decisions before filtering: a folder's own, those that a set's manifest has
    kept, or unknown.
    """
    if isinstance(data, Images):
        return "own"
    counts = raw_counts(data.manifest)
    try:
        check_counts(counts, classes)
    except EchosetError as error:
        raise EchosetError(f"{Path(path) / 'manifest.json'}: {error}") from error
    return counts


def _evenly(data: Images, count: int) -> Images:
    """`count` of the images, evenly spread; all of them for 0, or where there are no more."""
    return (
        data.chosen(torch.linspace(0, len(data) - 1, count).long())
        if 0 < count < len(data)
        else data
    )


def _validation_table(found: dict[str, Any]) -> Table:
    table = _rows_table("Do the scores predict the students?", validation_rows(found))
    order = sorted(found["sets"].items(), key=lambda item: -item[1]["accuracy"])
    accuracies = ", ".join(f"{name} {one['accuracy']:.2%}" for name, one in order)
    table.caption = "\n".join([f"mean test accuracy: {accuracies}", *validation_notes(found)])
    return table


def _fill_grid(
    run: StudyRun | ScoreRun,
    teacher: Classifier,
    sets: dict[str, Any],
    data: Images,
    out: Path,
    options: StudyOptions,
) -> tuple[list[dict[str, Any]], int]:
    """Teach this process's part of the students; all that are finished, and how many there are to
    be.
    """
    spec = teacher.spec
    original = (
        load_images(run.original, "train", spec.channels, spec.size, run.quiet)
        if run.original
        else None
    )
    cells = run_study(
        teacher, sets, data, out, run.student, options, run.distillation, original, runtime=run
    )
    return cells, len(plan(sets, options, original is not None))


def report(run: ReportRun) -> int:
    """Write the page again."""
    path = write_report(Path(run.run), Path(run.out) if run.out else None)
    return _finish(run, None, {"report": str(path)}, f"report: {path}")


def verify(run: VerifyRun) -> int:
    """Check everything about a set that can be checked."""
    transfer_set = TransferSet.load(run.set, check_hashes=True)
    counts = transfer_set.counts()
    balanced, found = max(counts) - min(counts) <= 1, f"{min(counts)} to {max(counts)}"
    document: dict[str, Any] = {
        "set": run.set,
        "images": len(transfer_set),
        "per_class": counts,
        "balanced": balanced,
    }
    table = _table(f"Transfer set {run.set}", "", "found")
    table.add_row(
        "shards", f"{len(transfer_set.manifest['shards'])}, hashes, shapes and labels hold"
    )
    table.add_row("images", f"{len(transfer_set):,}")
    # The unbalanced twin of a collected set, and a growing pool, were not meant to be balanced.
    config = transfer_set.manifest["config"]
    replay = config.get("replay")
    meant = config.get("balanced", True) and not (
        isinstance(replay, dict) and replay.get("keep_all", False)
    )
    table.add_row(
        "per class",
        found
        + ("" if balanced else ": not balanced" if meant else ": not balanced, nor meant to be"),
    )
    problem = (
        f"{run.set} is not balanced: {found} images per class" if meant and not balanced else None
    )
    if run.teacher is not None:
        teacher = load_teacher(run.teacher)
        _same_teacher(transfer_set, teacher, run.set)
        answers = predict(teacher, transfer_set.images, run.resolve_device(), quiet=run.quiet).cpu()
        # float16 keeps 11 bits: a stored logit is off by at most 2⁻¹¹ of its size, and float32 sums
        # differ in their order, which can decide between two classes that are next to equal, as on
        # images pushed to a boundary.
        behind = answers.amax(1) - answers.gather(1, transfer_set.labels[:, None])[:, 0]
        wrong = int((behind > 1e-4 * (1 + answers.abs().amax(1))).sum())
        gap = (answers - transfer_set.logits.float()).abs() / (1 + answers.abs())
        document |= {"labels_differ": wrong, "largest_logit_gap": gap.max().item()}
        table.add_row("labels the teacher gives otherwise", str(wrong))
        table.add_row("largest gap to stored logits", f"{gap.max():.1e} of their size")
        if wrong or gap.max() > 2e-3:
            problem = f"{run.set}: the teacher answers otherwise than stored ({wrong} labels, logits off by up to {gap.max():.1e})"
    status = _finish(run, table, document)
    if problem:
        raise EchosetError(problem)
    return status


def export(run: ExportRun) -> int:
    """Merge sets, draw from them, write them for others."""
    if len({Path(folder).resolve() for folder in run.sets}) < len(run.sets):
        raise EchosetError(f"a set is named twice: {', '.join(run.sets)}")
    data = merge([TransferSet.load(folder, check_hashes=True) for folder in run.sets], run.sets)
    if run.images:
        data = subsample(data, run.images, run.seed)
    place = export_set(data, run.out, run.form, run.quiet)
    counts = data.counts()
    short = data.manifest.get("short") or {}
    document = {
        "out": str(place),
        "form": run.form,
        "images": len(data),
        "per_class": counts,
        "short": short,
    }
    lacks = "".join(f"; class {label} is {count} short" for label, count in short.items())
    line = f"{len(data):,} images, {min(counts)} to {max(counts)} of each class: {place}{lacks}"
    return _finish(run, None, document, line)


def bench(run: BenchRun) -> int:
    """Measure, show the headlines, and print the whole document."""
    from inversion.bench.bench import HEADLINES
    from inversion.bench.bench import bench as measure

    found = measure(run)
    table = _table(
        f"{found['teacher']} → {found['student']}, batch {run.batch}",
        "",
        "ours, ms",
        "theirs, ms",
        "ratio",
    )
    for name, times in {**found["kernels"], "bn_match": found["bn_match"]}.items():
        ours, definition = times["ours"]["ms"], times["definition"]["ms"]
        table.add_row(
            f"{name} / definition", f"{ours:.2f}", f"{definition:.2f}", f"{definition / ours:.1f}×"
        )
    table.add_section()
    for name in ("bn_match", "pool", "synthesis_step", "distillation_step"):
        part = found[name]
        ours = f"{part['whole_ms']:.2f}" if "whole_ms" in part else _with_extremes(part["ours"])
        table.add_row(
            f"{name} / peers", ours, _with_extremes(part["peers"]), f"{part['speedup']:.1f}×"
        )
    step = found["synthesis_step"]
    mib = f"{step['memory_mib']:.0f} MiB", f"{step['peers_memory_mib']:.0f} MiB"
    table.add_row("peak memory, synthesis", *mib, f"{step['memory_ratio']:.2f}")
    table.add_row(f"share of {found['precision']} rate", "", "", f"{step['share_of_limit']:.0%}")
    changes = found.get("against", {}).get("change", {})
    if changes:
        table.add_section()
        for name in HEADLINES:
            if name in changes:
                table.add_row(f"{name}, × earlier", "", "", f"{changes[name]:.2f}")
    table.caption = (
        f"{found['device']}, {found['precision']}, {found['kernel_forms']}, torch {found['torch']}"
    )
    for name, (before, now) in found.get("against", {}).get("differs", {}).items():
        table.caption += f"\nthe earlier file has another {name}: {before}, now {now}"
    if not run.quiet:
        Console(markup=False).print(table)
    print(json.dumps(found))
    return 0


def _check_demo(run: DemoRun, teacher: Classifier, fresh: Classifier, data: Images) -> None:
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


def _start_demo_folder(out: Path) -> None:
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


def _require_data(path: str | None, teacher: TeacherOptions) -> bool:
    """Whether the teacher is the one that the bundled test images are for; any other needs test
    data of its own.
    """
    bundled = (teacher.model, teacher.weights) == ("mnist", None)
    if path is None and not bundled:
        raise EchosetError(
            "the bundled test images are MNIST's, for teacher mnist alone; give this one's test "
            "data with --data"
        )
    return bundled


def _test_data(path: str | None, model: Classifier, quiet: bool) -> Images:
    """What to judge on, as the network takes it."""
    if path is not None:
        return load_images(path, "test", model.spec.channels, model.spec.size, quiet)
    if (model.spec.channels, model.spec.size, model.spec.classes) != (1, 28, 10):
        raise EchosetError(
            f"the bundled test images are MNIST's, not for {model.spec.model}; give its test data "
            "with --data"
        )
    data = load_images(MNIST_SLICE)
    return dataclasses.replace(
        data, name="every fifth image of the MNIST test set (2,000 of 10,000)"
    )


def _load_set(
    path: str, teacher: Classifier, quiet: bool, labelled: bool = True
) -> TransferSet | Images:
    """A transfer set this teacher made, or any images, as it takes them."""
    if is_set(path):
        transfer_set = TransferSet.load(path)
        _same_teacher(transfer_set, teacher, path)
        return transfer_set
    return load_images(path, "train", teacher.spec.channels, teacher.spec.size, quiet, labelled)


def _same_teacher(transfer_set: TransferSet, teacher: Classifier, folder: str) -> None:
    made_by, weight_hash = transfer_set.manifest["teacher"], teacher.weight_hash()
    if made_by.get("weight_hash") != weight_hash:
        raise EchosetError(
            f"{folder} was made by teacher '{made_by.get('model')}' with weights "
            f"{str(made_by.get('weight_hash'))[:16]}…, "
            f"the teacher given has {weight_hash[:16]}…; give the same one with --teacher"
        )
    if differ := [
        key
        for key, value in teacher.contract.items()
        if value != transfer_set.manifest["input"][key]
    ]:
        raise EchosetError(
            f"{folder} was made with another {', '.join(differ)} of the teacher; give the same "
            f"--teacher.{differ[0]}"
        )


def _require_balance(short: dict[str, int], folder: Path | str) -> None:
    if short:
        lacks = ", ".join(f"class {label} lacks {count}" for label, count in short.items())
        raise EchosetError(
            f"{folder} is written but not balanced: {lacks}. The teacher gave too few of the "
            "generated images these classes; "
            "raise synthesis.objective.classes or synthesis.calls"
        )


def _with_extremes(times: dict[str, float]) -> str:
    return f"{times['ms']:.2f} ({times['least_ms']:.2f}–{times['most_ms']:.2f})"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _rows_table(title: str, rows: list[tuple[str, ...]]) -> Table:
    table = _table(title)
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _finish(
    run: Common, table: Table | None, document: dict[str, Any], line: str | None = None
) -> int:
    """Show the table, then the JSON as the very last line."""
    if not run.quiet and table is not None:
        Console(markup=False).print(table)
    if not run.quiet and line:
        print(line)
    if run.json:
        print(json.dumps(document))
    return 0
