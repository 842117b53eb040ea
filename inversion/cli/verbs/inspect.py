"""Say what a teacher is."""

from __future__ import annotations

import dataclasses

from inversion.cli.schema import InspectRun
from inversion.cli.show import finish, new_table
from inversion.teacher import inspect_teacher, load_teacher


def execute(run: InspectRun) -> int:
    """Load a teacher, look it over, say what was found."""
    found = inspect_teacher(load_teacher(run.teacher))
    spec = found.spec
    table = new_table(f"Teacher {spec.model}", "", "found")
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
    return finish(run, table, dataclasses.asdict(found))
