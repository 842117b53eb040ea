"""Write the page about a run, or about two."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inversion.cli.show import finish
from inversion.pages.comparison import write_comparison
from inversion.pages.report import write_report
from inversion.pages.student import is_student, write_student
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from inversion.cli.schema import ReportRun


def execute(run: ReportRun) -> int:
    """Write the page again."""
    folder = Path(run.run)
    out = Path(run.out) if run.out else None
    if out is not None and out.suffix != ".html":
        raise EchosetError(f"--out is the page to write and should end in .html, got {run.out}")
    if run.against is not None:
        path = write_comparison(folder, Path(run.against), out)
    elif is_student(folder):
        path = write_student(folder, out)
    else:
        path = write_report(folder, out)
    return finish(run, None, {"report": str(path)}, f"report: {path}")
