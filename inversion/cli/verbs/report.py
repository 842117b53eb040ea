"""Write the page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inversion.cli.show import finish
from inversion.pages.report import write_report

if TYPE_CHECKING:
    from inversion.cli.schema import ReportRun


def execute(run: ReportRun) -> int:
    """Write the page again."""
    path = write_report(Path(run.run), Path(run.out) if run.out else None)
    return finish(run, None, {"report": str(path)}, f"report: {path}")
