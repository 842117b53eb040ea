"""Choose a transfer set from sources."""

from __future__ import annotations

from inversion.cli.schema import CollectRun
from inversion.cli.show import finish, new_table
from inversion.sources.collect import collect as collect_set
from inversion.teacher import load_teacher
from synthesis_kernels.errors import EchosetError


def execute(run: CollectRun) -> int:
    """Choose a set from sources."""
    made = collect_set(load_teacher(run.teacher), run.sources, run.collection, run.out, runtime=run)
    found = made.manifest["collection"]
    document = {"set": run.out, "images": len(made), "per_class": made.counts(), **found}
    ways = list(found["taken"])
    table = new_table(
        f"Transfer set {run.out}", "class", "drawn", "accepted", "full after", *ways, "in the set"
    )
    for label, count in enumerate(made.counts()):
        full = found["needed"][label]
        drawn = (
            str(found["raw_counts"][label]),
            str(found["accepted"][label]),
            f"{full:,}" if full else "–",
        )
        table.add_row(
            str(label), *drawn, *(str(found["taken"][way][label]) for way in ways), str(count)
        )
    exposed = [f"{share:.0%} of {address}" for address, share in found["exposed"].items() if share]
    shown = f"; shown as figures on black: {', '.join(exposed)}" if exposed else ""
    table.caption = (
        f"{found['drawn']:,} images drawn, {len(made):,} in the set, {found['seconds']:.0f} s; "
        "class coverage before choosing "
        f"{found['raw_coverage']:.3f}{shown}"
    )
    status = finish(run, table, document)
    if found["missing"]:
        lacks = ", ".join(f"class {label} lacks {count}" for label, count in found["short"].items())
        turned_away = found["drawn"] - sum(found["accepted"])
        window = (
            f"; {turned_away:,} of {found['drawn']:,} lay outside confidence, margin or only"
            if turned_away
            else ""
        )
        way = (
            ""
            if not run.collection.balanced
            else ", or a further way of filling classes to --short"
        )
        raise EchosetError(
            f"{run.out} is written but {found['missing']} images "
            f"short{f': {lacks}' if lacks else ''}{window}. "
            f"Add a --source, raise --collection.draws where a source has no end{way}"
        )
    return status
