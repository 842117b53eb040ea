"""One self-contained HTML page about a run: pictures, curves and tables, no script and nothing
fetched.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distill.files import read_log, write_atomically
from distill.learner import asks_teacher
from distill.models import comes_trained
from distill.options import DistillOptions, StudentOptions
from distill.sets.transfer_set import TransferSet
from inversion.pages.page import bars, gallery, lines, table, whole
from inversion.parts.policy import FEATURES
from inversion.sources import DRAWN
from synthesis_kernels.errors import EchosetError


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page for a demo's folder or a bare set's, and return its path."""
    folder = run / "set" if (run / "set" / "manifest.json").is_file() else run
    if not (folder / "manifest.json").is_file():
        raise EchosetError(
            f"{run} holds neither a demo nor a finished transfer set; give a folder made by demo, "
            "synthesize or collect"
        )
    transfer_set = TransferSet.load(folder)
    summary = _read_summary(run / "summary.json")
    with _blaming(run / "summary.json"):
        outcome = _summary(summary)
    with _blaming(folder / "manifest.json"):
        title, origin, provenance = (
            _title(transfer_set),
            _collection(transfer_set),
            _provenance(summary, transfer_set),
        )
        pictures = _gallery(transfer_set) + _balance(transfer_set)
    # A run that was stopped may have logged a step twice; the later line is the one that counts.
    with _blaming(folder / "log.jsonl"):
        calls = list(
            {
                (e["shard"], e["call"]): e
                for e in read_log(folder / "log.jsonl")
                if e["event"] == "call"
            }.values()
        )
        curves, seconds = (
            _synthesis_curves(calls, len(transfer_set.manifest["shards"])),
            _call_seconds(calls),
        )
    with _blaming(run / "log.jsonl"):
        steps = list(
            {e["step"]: e for e in read_log(run / "log.jsonl") if e["event"] == "distill"}.values()
        )
        curves += _distillation_curves(steps, summary.get("answers", "teacher"))
    with _blaming(run / "summary.json"):
        times = _time_split(summary, seconds)
    path = out or run / "report.html"
    write_atomically(
        path,
        whole(
            "Echoset report", "".join((title, outcome, pictures, origin, curves, times, provenance))
        ),
    )
    return path


def told_of(options: DistillOptions) -> dict[str, str]:
    """What a summary tells of a distillation: which student was kept, and whose answers its figures
    compare with.
    """
    if not options.steps:
        return {}
    kept = "running average of the student's weights" if options.ema else "last step"
    if options.patience:
        kept = "best on held-out images of the set"
    return {"kept": kept, "answers": "teacher" if asks_teacher(options) else "labels"}


def weights_given(*students: StudentOptions) -> list[str]:
    """What students may have learnt elsewhere: files of weights, and networks by import path, which
    may bring their own.
    """
    own = [student.model for student in students if comes_trained(student.model)]
    return sorted({*own, *(student.weights for student in students if student.weights)})


@contextmanager
def _blaming(file: Path) -> Iterator[None]:
    """Name the file whose content can't be shown."""
    try:
        yield
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        IndexError,
        RecursionError,
    ) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise EchosetError(f"{file} is not as echoset writes it: {what}") from error


def _read_summary(file: Path) -> dict[str, Any]:
    with _blaming(file):
        summary = json.loads(file.read_text()) if file.is_file() else {}
    if not isinstance(summary, dict):
        raise EchosetError(f"{file} is not as echoset writes it: it holds no JSON object")
    return summary


def _title(transfer_set: TransferSet) -> str:
    sources = _sources(transfer_set.manifest)
    what = "synthetic images from one trained network"
    if sources != [GENERATOR]:
        what = f"images from {html.escape(', '.join(sources))}, chosen by one trained network"
    return f"<h1>Echoset report</h1><p class=note>{len(transfer_set):,} {what}</p>"


GENERATOR = "a generator"


def _sources(manifest: Mapping[str, Any]) -> list[str]:
    """Where images came from, those of the sets that one was put together of among them."""
    if "collection" in manifest:
        return manifest["collection"]["sources"]
    if parts := manifest["config"].get("of"):
        return list(dict.fromkeys(source for part in parts for source in _sources(part)))
    return [GENERATOR]


def _summary(summary: dict[str, Any]) -> str:
    if not summary:
        return ""
    rows = [
        ("", "teacher", "student"),
        ("accuracy", f"{summary['teacher_accuracy']:.2%}", f"{summary['student_accuracy']:.2%}"),
        ("parameters", f"{summary['teacher_parameters']:,}", f"{summary['student_parameters']:,}"),
        ("same decision as the teacher", "", f"{summary['agreement']:.2%}"),
    ]
    if summary.get("adversary_accuracy") is not None:
        rows.append(
            ("accuracy of the adversarial student", "", f"{summary['adversary_accuracy']:.2%}")
        )
    kept = html.escape(summary.get("kept", "last step"))
    note = f"Judged on {html.escape(summary['test_images'])}; the {kept} is what is reported."
    beside = summary.get("beside") or {"images": 0, "sources": []}
    # Said only where it is known that no network brought weights along.
    if (
        all(source.partition(":")[0] in DRAWN for source in beside["sources"])
        and summary.get("given_weights") == []
    ):
        note += " The student saw no real image."
    if beside["images"]:
        sources = html.escape(", ".join(beside["sources"]))
        note += f" The student learnt from {beside['images']:,} images of {sources}, too, which the set below does not hold."
    if summary.get("start") == "adversary":
        note += " It went on from the adversarial student, which had drawn from all images that passed through the buffer."
    return f"{table(rows)}<p class=note>{note}</p>"


def _gallery(transfer_set: TransferSet) -> str:
    found = gallery(transfer_set.images.numpy(), transfer_set.labels.numpy(), transfer_set.classes)
    return f"<h2>The set, by class</h2>{found}"


def _balance(transfer_set: TransferSet) -> str:
    counts = transfer_set.counts()
    confidence = transfer_set.logits.float().softmax(1).amax(1).numpy()
    heights, edges = np.histogram(confidence, bins=20, range=(0, 1))
    charts = bars(counts, [str(i) for i in range(len(counts))], "images per class")
    charts += bars(
        heights.tolist(),
        [f"{edge:.2f}" for edge in edges[:-1]],
        "the teacher's confidence",
        every=4,
    )
    return f"<h2>Balance and confidence</h2><div class=row>{charts}</div>"


def _collection(transfer_set: TransferSet) -> str:
    found = transfer_set.manifest.get("collection")
    if not found:
        return ""
    rows = [("class", "drawn", "accepted", *found["taken"], "missing")]
    for label in range(transfer_set.classes):
        taken = (str(counts[label]) for counts in found["taken"].values())
        missing = str(found["short"].get(str(label), 0))
        rows.append(
            (
                str(label),
                str(found["raw_counts"][label]),
                str(found["accepted"][label]),
                *taken,
                missing,
            )
        )
    note = f"{found['drawn']:,} images drawn in {found['seconds']:.0f} s; class coverage {found['raw_coverage']:.3f} before choosing."
    exposed = [
        f"{share:.0%} of {html.escape(address)}"
        for address, share in found["exposed"].items()
        if share
    ]
    note += f" Shown as figures on black: {', '.join(exposed)}." if exposed else ""
    return f"<h2>Where the images came from</h2>{table(rows)}<p class=note>{note}</p>"


def _synthesis_curves(calls: list[dict[str, Any]], shards: int) -> str:
    first = [call for call in calls if call["shard"] == 0]
    if len(first) < 2:
        return ""
    x = [call["call"] for call in first]
    agreement = {
        "held-out images": [c["held_out_agreement"] for c in first],
        "trained images": [c["agreement"] for c in first],
    }
    losses = {"BatchNorm": [c["bn"] for c in first], "class": [c["classes"] for c in first]}
    charts = lines(x, agreement, "adversarial student's agreement, by generator call", (0, 1))
    charts += lines(x, losses, "generator's losses, by call")
    charts += lines(
        x,
        {"kept": [sum(c["counts"]) for c in first], "taken in": [c["taken"] for c in first]},
        "images, by call",
    )
    if learnt := [call for call in first if "policy" in call]:
        x, weights = (
            [call["call"] for call in learnt],
            zip(*(call["policy"] for call in learnt), strict=True),
        )
        charts += lines(
            x, dict(zip(FEATURES, map(list, weights), strict=True)), "policy's weights, by call"
        )
        charts += lines(
            x,
            {"reward": [call["reward"] for call in learnt]},
            "its reward: ln(divergence before / after), by call",
        )
    which = f", shard 0 of {shards}" if shards > 1 else ""
    return f"<h2>Synthesis{which}</h2><div class=row>{charts}</div>"


def _distillation_curves(steps: list[dict[str, Any]], answers: str) -> str:
    if len(steps) < 2:
        return ""
    x = [step["step"] for step in steps]
    charts = lines(
        x,
        {"agreement": [s["agreement"] for s in steps]},
        "the student's agreement, by step",
        (0, 1),
    )
    charts += lines(
        x, {"KL": [s["loss"] for s in steps]}, f"divergence from the {answers}, by step"
    )
    return f"<h2>Distillation</h2><div class=row>{charts}</div>"


def _call_seconds(calls: list[dict[str, Any]]) -> list[tuple[str, float]]:
    generator = sum(call["generator_seconds"] for call in calls)
    return [
        ("generator", generator),
        ("adversarial student", sum(call["seconds"] for call in calls) - generator),
    ]


def _time_split(summary: dict[str, Any], parts: list[tuple[str, float]]) -> str:
    stages = summary.get("seconds", {})
    parts = parts + [
        (name, stages[name])
        for name in ("collection", "distillation", "evaluation")
        if stages.get(name)
    ]
    total = sum(seconds for _, seconds in parts)
    if not total:
        return ""
    rows = [
        ("stage", "seconds", "share"),
        *[(name, f"{seconds:.1f}", f"{seconds / total:.0%}") for name, seconds in parts],
    ]
    return f"<h2>Where the time went</h2>{table(rows)}"


def _provenance(summary: dict[str, Any], transfer_set: TransferSet) -> str:
    manifest = transfer_set.manifest
    rows = [
        ("command", summary.get("command", "")),
        ("seed", manifest.get("seed")),
        ("device", manifest["shards"][0].get("device")),
    ]
    rows += [
        (
            "teacher",
            f"{manifest['teacher'].get('model')}, weights SHA-256 "
            f"{manifest['teacher'].get('weight_hash')}",
        )
    ]
    rows += [("echoset", manifest["code_version"]), ("torch", summary.get("torch", ""))]
    rows += [(shard["file"], f"SHA-256 {shard['sha256']}") for shard in manifest["shards"][:8]]
    body = "".join(
        f"<tr><td>{html.escape(str(k))}<td><code>{html.escape(str(v))}</code>"
        for k, v in rows
        if v not in ("", None)
    )
    config = html.escape(json.dumps(manifest["config"], indent=1))
    return f"<h2>How it was made</h2><table>{body}</table><details><summary>All options</summary><pre>{config}</pre></details>"
