"""One self-contained page about a run: its result, plots, pictures and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.files import write_atomically
from distill.losses import asks_teacher
from distill.models import comes_trained
from distill.options import DistillOptions, StudentOptions
from distill.sets.transfer_set import TransferSet
from inversion.pages.extremes import extremes
from inversion.pages.judged_sections import judged_part
from inversion.pages.judging import JUDGED
from inversion.pages.page import render
from inversion.pages.reading import blaming, last_of, read_document
from inversion.pages.run_sections import (
    distillation_section,
    outcome,
    synthesis_seconds,
    synthesis_section,
    time_rows,
)
from inversion.pages.set_sections import (
    balance_section,
    made,
    options_text,
    origin,
    provenance,
    set_gallery,
)
from inversion.pages.verdict import read_verdict
from synthesis_kernels.errors import EchosetError


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page for a demo's folder or a bare set's, and return its path."""
    folder = set_folder(run)
    if folder is None:
        raise EchosetError(
            f"{run} holds neither a demo nor a finished transfer set; give a folder made by demo, "
            "synthesize, collect or, once its student is finished, distill"
        )
    transfer_set = TransferSet.load(folder)
    summary = read_document(run / "summary.json")
    content: dict[str, Any] = {}
    with blaming(run / "summary.json"):
        content["outcome"] = outcome(summary)
    with blaming(run / JUDGED):
        content["judged_images"] = judged_part(read_document(run / JUDGED))
    with blaming(folder / "manifest.json"):
        content |= _of_set(transfer_set, summary)
    content["verdict"] = read_verdict((run, folder), transfer_set.manifest)
    with blaming(folder / "log.jsonl"):
        calls = last_of(folder / "log.jsonl", "call", ("shard", "call"))
        synthesis = synthesis_section(calls, len(transfer_set.manifest["shards"]))
        seconds = synthesis_seconds(calls)
    with blaming(run / "log.jsonl"):
        steps = last_of(run / "log.jsonl", "distill", ("step",))
        distillation = distillation_section(steps, summary.get("answers", "teacher"))
    with blaming(run / "summary.json"):
        content["times"] = time_rows(summary, seconds)
    sections = [synthesis, distillation, balance_section(transfer_set)]
    content["sections"] = [section for section in sections if section is not None]
    path = out or run / "report.html"
    write_atomically(path, render("report.html.j2", title="Echoset report", **content))
    return path


def told_of(options: DistillOptions) -> dict[str, str]:
    """What a summary tells of a distillation: which student was kept, and whose answers its figures
    compare with.
    """
    if not options.steps:
        return {}
    kept = "last step"
    if options.ema:
        kept = "running average of the student's weights"
    if options.patience:
        kept = "best on held-out images of the set"
    answers = "teacher" if asks_teacher(options) else "labels"
    return {"kept": kept, "answers": answers}


def weights_given(*students: StudentOptions) -> list[str]:
    """What students may have learnt elsewhere: files of weights, and networks by import path, which
    may bring their own.
    """
    own = [student.model for student in students if comes_trained(student.model)]
    files = [student.weights for student in students if student.weights]
    return sorted({*own, *files})


def set_folder(run: Path) -> Path | None:
    """Where the run's set lies, if it has a finished one."""
    for folder in (run / "set", run):
        if (folder / "manifest.json").is_file():
            return folder
    return None


def _of_set(transfer_set: TransferSet, summary: dict[str, Any]) -> dict[str, Any]:
    """What the page tells of the set."""
    return {
        "made": made(transfer_set),
        "origin": origin(transfer_set),
        "gallery": set_gallery(transfer_set),
        "outstanding": extremes(transfer_set),
        "provenance": provenance(summary, transfer_set),
        "options": options_text(transfer_set),
    }
