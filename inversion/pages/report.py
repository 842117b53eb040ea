"""One self-contained page about a run: its result, plots, pictures and options."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.files import read_log, write_atomically
from distill.losses import asks_teacher
from distill.models import comes_trained
from distill.options import DistillOptions, StudentOptions
from distill.sets.transfer_set import TransferSet
from inversion.pages.page import render
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
from synthesis_kernels.errors import EchosetError


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page for a demo's folder or a bare set's, and return its path."""
    folder = _set_folder(run)
    transfer_set = TransferSet.load(folder)
    summary = _read_summary(run / "summary.json")
    content: dict[str, Any] = {}
    with _blaming(run / "summary.json"):
        content["outcome"] = outcome(summary)
    with _blaming(folder / "manifest.json"):
        content |= _of_set(transfer_set, summary)
    with _blaming(folder / "log.jsonl"):
        calls = _last_of(folder / "log.jsonl", "call", ("shard", "call"))
        synthesis = synthesis_section(calls, len(transfer_set.manifest["shards"]))
        seconds = synthesis_seconds(calls)
    with _blaming(run / "log.jsonl"):
        steps = _last_of(run / "log.jsonl", "distill", ("step",))
        distillation = distillation_section(steps, summary.get("answers", "teacher"))
    with _blaming(run / "summary.json"):
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


def _set_folder(run: Path) -> Path:
    """Where the run's set lies."""
    for folder in (run / "set", run):
        if (folder / "manifest.json").is_file():
            return folder
    raise EchosetError(
        f"{run} holds neither a demo nor a finished transfer set; give a folder made by demo, "
        "synthesize or collect"
    )


def _of_set(transfer_set: TransferSet, summary: dict[str, Any]) -> dict[str, Any]:
    """What the page tells of the set."""
    return {
        "made": made(transfer_set),
        "origin": origin(transfer_set),
        "gallery": set_gallery(transfer_set),
        "provenance": provenance(summary, transfer_set),
        "options": options_text(transfer_set),
    }


def _read_summary(file: Path) -> dict[str, Any]:
    summary: Any = {}
    with _blaming(file):
        if file.is_file():
            summary = json.loads(file.read_text())
    if not isinstance(summary, dict):
        raise EchosetError(f"{file} is not as echoset writes it: it holds no JSON object")
    return summary


def _last_of(log: Path, event: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of one kind of event, in order.

    A run that was stopped may have logged a step twice; the later line is the one that counts.
    """
    entries: dict[Hashable, dict[str, Any]] = {}
    for entry in read_log(log):
        if entry["event"] == event:
            entries[tuple(entry[key] for key in keys)] = entry
    return list(entries.values())


@contextmanager
def _blaming(file: Path) -> Iterator[None]:
    """Name the file whose content can't be shown."""
    try:
        yield
    except KeyError as error:
        raise _unreadable(file, f"it lacks {error}") from error
    except (
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        IndexError,
        RecursionError,
    ) as error:
        raise _unreadable(file, str(error)) from error


def _unreadable(file: Path, problem: str) -> EchosetError:
    return EchosetError(f"{file} is not as echoset writes it: {problem}")
