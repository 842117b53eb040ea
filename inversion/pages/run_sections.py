"""What a report tells of a run: its result, how the set and the student grew, where time went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inversion.pages.plots import Plot, Section, lines
from inversion.parts.policy import FEATURES
from inversion.sources import DRAWN

AGREEMENTS = {"held_out_agreement": "held-out images", "agreement": "trained images"}
LOSSES = {
    "bn": "BatchNorm",
    "classes": "class",
    "generator": "generator",
    "difference": "distance to the teacher",
}
"""What a call may log, and what it is called in a plot. Recipes log some of these."""
CALLS = "generator call"
LATER_STAGES = ("collection", "distillation", "evaluation")


@dataclass(frozen=True)
class Outcome:
    """What a demo's student has learnt."""

    sentence: str
    """How teacher and student did."""
    rows: list[tuple[str, ...]]
    note: str


def outcome(summary: Mapping[str, Any]) -> Outcome | None:
    """Teacher and student side by side; nothing where there was no student."""
    if not summary:
        return None
    agreement = f"{summary['agreement']:.2%}"
    rows: list[tuple[str, ...]] = [("", "teacher", "student")]
    if summary["student_accuracy"] is None:
        sentence = (
            f"The student decides as the teacher does on {agreement} of pictures that neither "
            "learnt from. How often they are right was not measured: there were no labelled test "
            "images."
        )
    else:
        teacher = f"{summary['teacher_accuracy']:.2%}"
        student = f"{summary['student_accuracy']:.2%}"
        rows += own_rows(summary)
        rows.append(("accuracy", teacher, student))
        sentence = f"The teacher decides {teacher} of the test images right, the student {student}."
    rows += [
        ("parameters", f"{summary['teacher_parameters']:,}", f"{summary['student_parameters']:,}"),
        ("same decision as the teacher", "", agreement),
    ]
    adversary = summary.get("adversary_accuracy")
    if adversary is not None:
        rows.append(("accuracy of the adversarial student", "", f"{adversary:.2%}"))
    return Outcome(sentence, rows, _outcome_note(summary))


def own_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Figures of the task's own, to judge by first: name, the teacher's and the student's. Those
    that there are one of for each class are left to the pages.
    """
    rows: list[tuple[str, ...]] = []
    for name, (teacher, student) in summary.get("own", {}).items():
        if not isinstance(teacher, list):
            shown = name.replace("_", " ").replace("iou", "IoU")
            rows.append((shown, f"{teacher:.4f}", f"{student:.4f}"))
    return rows


def _outcome_note(summary: Mapping[str, Any]) -> str:
    beside = summary.get("beside") or {"images": 0, "sources": []}
    kept = summary.get("kept", "last step")
    note = f"Judged on {summary['test_images']}; the {kept} is what is reported."
    # Said only where it is known that no network brought weights along.
    drawn = all(source.partition(":")[0] in DRAWN for source in beside["sources"])
    if drawn and summary.get("given_weights") == []:
        note += " The student saw no real image."
    if beside["images"]:
        sources = ", ".join(beside["sources"])
        note += (
            f" The student learnt from {beside['images']:,} images of {sources}, too, which the "
            "set below does not hold."
        )
    if summary.get("start") == "adversary":
        note += (
            " It went on from the adversarial student, which had drawn from all images that "
            "passed through the buffer."
        )
    return note


def synthesis_section(calls: Sequence[Mapping[str, Any]], shards: int) -> Section | None:
    """How the first shard grew, call by call."""
    first = [call for call in calls if call["shard"] == 0]
    if len(first) < 2:
        return None
    title = "Synthesis"
    if shards > 1:
        title += f", shard 0 of {shards}"
    numbers = [call["call"] for call in first]
    images = {
        "kept": [sum(call["counts"]) for call in first],
        "taken in": [call["taken"] for call in first],
    }
    plots = [lines("images kept and taken in, by call", numbers, images, CALLS, "images")]
    agreements = _series(first, AGREEMENTS)
    if agreements:
        title_of_plot = "adversarial student's agreement, by generator call"
        unit = "same decision (%)"
        plots.append(
            lines(title_of_plot, numbers, agreements, CALLS, unit, share=True, limits=(0, 1))
        )
    losses = _series(first, LOSSES)
    if losses:
        plots.append(lines("losses, by call", numbers, losses, CALLS, "loss (no unit)"))
    learnt = [call for call in first if "policy" in call]
    if learnt:
        plots += _policy_plots(learnt)
    return Section(title, plots)


def _series(calls: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, list[float]]:
    """The figures that these calls have logged, by what they are called in a plot."""
    logged = {key: name for key, name in names.items() if key in calls[0]}
    return {name: [call.get(key, math.nan) for call in calls] for key, name in logged.items()}


def _policy_plots(calls: Sequence[Mapping[str, Any]]) -> list[Plot]:
    numbers = [call["call"] for call in calls]
    by_feature = zip(*(call["policy"] for call in calls), strict=True)
    weights = dict(zip(FEATURES, map(list, by_feature), strict=True))
    reward = {"reward": [call["reward"] for call in calls]}
    return [
        lines("policy's weights, by call", numbers, weights, CALLS, "weight (no unit)"),
        lines(
            "policy's reward: ln(divergence before / after), by call",
            numbers,
            reward,
            CALLS,
            "reward (nats)",
        ),
    ]


def distillation_section(steps: Sequence[Mapping[str, Any]], answers: str) -> Section | None:
    """How the student learnt, step by step."""
    if len(steps) < 2:
        return None
    numbers = [step["step"] for step in steps]
    agreement = {"agreement": [step["agreement"] for step in steps]}
    divergence = {"KL": [step["loss"] for step in steps]}
    return Section(
        "Distillation",
        [
            lines(
                "the student's agreement, by step",
                numbers,
                agreement,
                "step",
                "same decision (%)",
                share=True,
                limits=(0, 1),
            ),
            lines(
                f"divergence from the {answers}, by step",
                numbers,
                divergence,
                "step",
                "loss (no unit)",
            ),
        ],
    )


def synthesis_seconds(calls: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How long the parts of a synthesis took."""
    total = sum(call["seconds"] for call in calls)
    if not any("generator_seconds" in call for call in calls):
        return {"synthesis": total} if total else {}
    generator = sum(call["generator_seconds"] for call in calls)
    return {"generator": generator, "adversarial student": total - generator}


def time_rows(summary: Mapping[str, Any], synthesis: Mapping[str, float]) -> list[tuple[str, ...]]:
    """A table of stages, their seconds and shares; empty where no time is known."""
    stages = dict(synthesis)
    later = summary.get("seconds", {})
    for name in LATER_STAGES:
        if later.get(name):
            stages[name] = later[name]
    total = sum(stages.values())
    if not total:
        return []
    rows: list[tuple[str, ...]] = [("stage", "seconds", "share")]
    for name, seconds in stages.items():
        rows.append((name, f"{seconds:.1f}", f"{seconds / total:.0%}"))
    return rows
