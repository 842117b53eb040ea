"""Say what a teacher is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from inversion.cli.show import finish, new_table
from inversion.teacher import inspect_teacher, load_teacher

if TYPE_CHECKING:
    from inversion.cli.schema import InspectRun


def execute(run: InspectRun) -> int:
    """Load a teacher, look it over, say what was found."""
    inspection = inspect_teacher(load_teacher(run.teacher, trust=run.trust))
    spec = inspection.spec
    table = new_table(f"Teacher {spec.model}", "", "found")
    table.add_row("parameters", f"{inspection.parameters:,}")
    table.add_row("input", f"{spec.channels} × {spec.size} × {spec.size}, in [0, 1]")
    table.add_row("classes", str(spec.classes))
    table.add_row("normalisation", f"mean {list(spec.mean)}, std {list(spec.std)}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in inspection.kinds.items())
    table.add_row("BatchNorm layers", f"{len(inspection.layers)} ({kinds})")
    for name, channels in inspection.layers.items():
        table.add_row("", f"{name}: {channels} channels")
    table.add_row("dead channels", str(inspection.dead_channels))
    table.add_row("weights SHA-256", inspection.weight_hash[:16] + "…")
    for key, value in spec.notes.items():
        table.add_row(key, str(value))
    table.add_row("warnings", "\n".join(inspection.warnings) or "none")
    return finish(run, table, dataclasses.asdict(inspection))
