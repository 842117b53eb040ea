"""Time the kernels and both loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inversion.cli.show import finish, new_table

if TYPE_CHECKING:
    from rich.table import Table

    from inversion.cli.schema import BenchRun


def execute(run: BenchRun) -> int:
    """Measure, and show the headlines."""
    from inversion.bench.bench import bench as measure

    document = measure(run)
    return finish(run, None if run.quiet else _new_table(run, document), document)


def _new_table(run: BenchRun, document: dict[str, Any]) -> Table:
    """The headlines: kernels, loops, memory, and what has changed since an earlier file."""
    title = f"{document['teacher']} → {document['student']}, batch {run.batch}"
    table = new_table(title, "", "ours, ms", "theirs, ms", "ratio", "of the limit")
    _add_kernels(table, document)
    table.add_section()
    _add_peers(table, document)
    table.add_section()
    _add_counts(table, document)
    _add_changes(table, document)
    table.caption = _caption(document)
    return table


def _add_kernels(table: Table, document: dict[str, Any]) -> None:
    """Each kernel beside its definition."""
    kernels = {**document["kernels"], "bn_match": document["bn_match"]}
    for name, times in kernels.items():
        ours = times["ours"]["ms"]
        definition = times["definition"]["ms"]
        ratio = f"{definition / ours:.1f}×"
        share = f"{times['share_of_limit']:.0%}"
        table.add_row(f"{name} / definition", f"{ours:.2f}", f"{definition:.2f}", ratio, share)


def _add_peers(table: Table, document: dict[str, Any]) -> None:
    """Each loop beside the usual formulation, and how near it comes to the machine's limits."""
    for name in ("bn_match", "pool", "synthesis_step", "distillation_step"):
        part = document[name]
        ours = _say_ours(part)
        peers = _with_extremes(part["peers"])
        table.add_row(f"{name} / peers", ours, peers, f"{part['speedup']:.1f}×")
    step = document["synthesis_step"]
    ours = f"{step['memory_mib']:.0f} MiB"
    peers = f"{step['peers_memory_mib']:.0f} MiB"
    table.add_row("peak memory, synthesis", ours, peers, f"{step['memory_ratio']:.2f}")
    share = f"{step['share_of_limit']:.0%}"
    table.add_row(f"synthesis_step, {document['precision']} rate", "", "", "", share)


def _add_counts(table: Table, document: dict[str, Any]) -> None:
    """What each step asks of the machine."""
    for name in ("synthesis_step", "adversary_step", "distillation_step"):
        step = document[name]
        asked = (
            f"{step['operations']:,} operations, {step['gmac']:.3g} GMAC, "
            f"{step['gigabytes']:.3g} GB"
        )
        table.add_row(f"{name}, eager", asked, "", "")


def _add_changes(table: Table, document: dict[str, Any]) -> None:
    """Headlines beside those of an earlier file."""
    from inversion.bench.bench import HEADLINES

    changes = document.get("against", {}).get("change", {})
    if not changes:
        return
    table.add_section()
    for name in HEADLINES:
        if name in changes:
            table.add_row(f"{name}, × earlier", "", "", f"{changes[name]:.2f}")


def _caption(document: dict[str, Any]) -> str:
    """The machine, and where the earlier file's was another."""
    machine = [document["device"], document["precision"], document["kernel_forms"]]
    lines = [", ".join([*machine, f"torch {document['torch']}"])]
    differs = document.get("against", {}).get("differs", {})
    for name, (before, now) in differs.items():
        lines.append(f"the earlier file has another {name}: {before}, now {now}")
    return "\n".join(lines)


def _say_ours(part: dict[str, Any]) -> str:
    """The time of the whole loop where it was measured, else of the repeats."""
    if "whole_ms" in part:
        return f"{part['whole_ms']:.2f}"
    return _with_extremes(part["ours"])


def _with_extremes(times: dict[str, float]) -> str:
    return f"{times['ms']:.2f} ({times['least_ms']:.2f}–{times['most_ms']:.2f})"
