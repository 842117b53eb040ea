"""Time the kernels and both loops."""

from __future__ import annotations

import json

from rich.console import Console

from inversion.cli.schema import BenchRun
from inversion.cli.show import new_table


def execute(run: BenchRun) -> int:
    """Measure, show the headlines, and print the whole document."""
    from inversion.bench.bench import HEADLINES
    from inversion.bench.bench import bench as measure

    found = measure(run)
    table = new_table(
        f"{found['teacher']} → {found['student']}, batch {run.batch}",
        "",
        "ours, ms",
        "theirs, ms",
        "ratio",
    )
    for name, times in {**found["kernels"], "bn_match": found["bn_match"]}.items():
        ours, definition = times["ours"]["ms"], times["definition"]["ms"]
        table.add_row(
            f"{name} / definition", f"{ours:.2f}", f"{definition:.2f}", f"{definition / ours:.1f}×"
        )
    table.add_section()
    for name in ("bn_match", "pool", "synthesis_step", "distillation_step"):
        part = found[name]
        ours = f"{part['whole_ms']:.2f}" if "whole_ms" in part else _with_extremes(part["ours"])
        table.add_row(
            f"{name} / peers", ours, _with_extremes(part["peers"]), f"{part['speedup']:.1f}×"
        )
    step = found["synthesis_step"]
    mib = f"{step['memory_mib']:.0f} MiB", f"{step['peers_memory_mib']:.0f} MiB"
    table.add_row("peak memory, synthesis", *mib, f"{step['memory_ratio']:.2f}")
    table.add_row(f"share of {found['precision']} rate", "", "", f"{step['share_of_limit']:.0%}")
    changes = found.get("against", {}).get("change", {})
    if changes:
        table.add_section()
        for name in HEADLINES:
            if name in changes:
                table.add_row(f"{name}, × earlier", "", "", f"{changes[name]:.2f}")
    table.caption = (
        f"{found['device']}, {found['precision']}, {found['kernel_forms']}, torch {found['torch']}"
    )
    for name, (before, now) in found.get("against", {}).get("differs", {}).items():
        table.caption += f"\nthe earlier file has another {name}: {before}, now {now}"
    if not run.quiet:
        Console(markup=False).print(table)
    print(json.dumps(found))
    return 0


def _with_extremes(times: dict[str, float]) -> str:
    return f"{times['ms']:.2f} ({times['least_ms']:.2f}–{times['most_ms']:.2f})"
