"""Write a student as a program for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.models.programs import Compared, check_ending, save_program
from inversion.cli.show import finish, tell
from inversion.inspection import check_shape
from inversion.teacher import load_teacher

if TYPE_CHECKING:
    from distill.models import Classifier
    from inversion.cli.schema import ExportStudentRun


def execute(run: ExportStudentRun) -> int:
    """Load a network, write it as a program, and compare the two."""
    check_ending(run.out)
    student = load_teacher(run.student, trust=run.trust)
    check_shape(student, "--student")
    tell(run, f"writing {student.spec.model} and comparing: seconds, or a minute for a large one")
    compared = save_program(student, run.out)
    document = _document(run, student, compared)
    shape = ", ".join(map(str, document["input"]))
    line = (
        f"{run.out}: {student.spec.model}, {document['bytes'] / 1e6:.1f} MB; takes images "
        f"(N, {shape}) in [0, 1], normalises them itself, gives logits; {_say(compared)}"
    )
    return finish(run, None, document, line)


def _document(run: ExportStudentRun, student: Classifier, compared: Compared) -> dict[str, Any]:
    """The last line of --json."""
    spec = student.spec
    return {
        "out": run.out,
        "form": Path(run.out).suffix.removeprefix("."),
        "model": spec.model,
        "input": list(spec.shape),
        "output": list(student.answer_shape),
        "bytes": Path(run.out).stat().st_size,
        "runtime": compared.runtime,
        "gap": compared.gap,
    }


def _say(compared: Compared) -> str:
    """Whether the program was compared with the network."""
    if compared.runtime is None:
        return "not compared with the network, as onnxruntime is not installed"
    return f"{compared.gap:.0e} from the network's under {compared.runtime}"
