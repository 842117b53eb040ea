"""Pages about a student: what `distill` has left in a folder, and what `evaluate` has found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.files import write_atomically
from inversion.pages.judged_sections import judged_part
from inversion.pages.judging import JUDGED, STUDENT_FILE
from inversion.pages.page import render
from inversion.pages.reading import blaming, last_of, read_document
from inversion.pages.run_sections import distillation_section

PROVENANCE = ("command", "seed", "device", "torch")


def is_student(folder: Path) -> bool:
    """Whether `distill` has left a student there."""
    more = any((folder / name).is_file() for name in ("summary.json", "manifest.json"))
    return (folder / STUDENT_FILE).is_file() and not more


def write_student(folder: Path, out: Path | None = None) -> Path:
    """Write the page about a student's folder, and return its path."""
    file = folder / STUDENT_FILE
    student = read_document(file)
    with blaming(file):
        content: dict[str, Any] = {
            "lead": _lead(student),
            "rows": _rows(student),
            "notes_below": [_note(student)],
        }
        content["provenance"] = _provenance(student)
        content["options"] = json.dumps(student["options"], indent=1)
    with blaming(folder / JUDGED):
        content["judged_images"] = judged_part(read_document(folder / JUDGED))
    with blaming(folder / "log.jsonl"):
        steps = last_of(folder / "log.jsonl", "distill", ("step",))
        section = distillation_section(steps, student.get("answers", "teacher"))
    content["sections"] = [] if section is None else [section]
    path = out or folder / "report.html"
    write_atomically(path, render("student.html.j2", title="Echoset student", **content))
    return path


def write_evaluation(
    lead: str,
    rows: Sequence[tuple[str, ...]],
    judged: Mapping[str, Any],
    command: str,
    path: Path,
) -> None:
    """Write the page about a judged network."""
    page = render(
        "student.html.j2",
        title="Echoset evaluation",
        lead=lead,
        rows=rows,
        notes_below=[],
        judged_images=judged_part(judged),
        sections=[],
        provenance=[("command", command)],
        options="",
    )
    write_atomically(path, page)


def _provenance(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How a student came to be, by name; what is not known is left out."""
    return [(name, str(document[name])) for name in PROVENANCE if name in document]


def _lead(student: Mapping[str, Any]) -> str:
    lead = (
        f"A student, {student['model']}, has learnt from {student['images']:,} images of "
        f"{student['learnt_from']}."
    )
    if student.get("answers", "teacher") == "teacher":
        return f"{lead} The teacher {student['teacher']} gave the answers."
    return f"{lead} Their labels were the answers."


def _rows(student: Mapping[str, Any]) -> list[tuple[str, ...]]:
    parameters = student["teacher_parameters"]
    told = "" if parameters is None else f"{parameters:,}"
    rows: list[tuple[str, ...]] = [
        ("", "teacher", "student"),
        ("parameters", told, f"{student['parameters']:,}"),
        ("agreement on the last views", "", f"{student['agreement']:.2%}"),
    ]
    held_out = student.get("held_out_agreement")
    if held_out is not None:
        rows.append(("agreement on held-out images", "", f"{held_out:.2%}"))
    rows.append(("losses", "", str(student["losses"])))
    rows.append(("steps", "", f"{student['steps']:,}"))
    rows.append(("seconds", "", f"{student['seconds']:.0f}"))
    return rows


def _note(student: Mapping[str, Any]) -> str:
    kept = student.get("kept", "last step")
    return f"The {kept} is what was kept. The verb evaluate judges it on test data."
