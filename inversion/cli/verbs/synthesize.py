"""Make a transfer set from a teacher."""

from __future__ import annotations

from inversion.cli.schema import SynthesizeRun
from inversion.cli.show import finish, new_table
from inversion.cli.verbs.shared import require_balance
from inversion.driver import synthesize as synthesize_set
from inversion.teacher import load_teacher


def execute(run: SynthesizeRun) -> int:
    """Make a set, or this process's part of one."""
    teacher = load_teacher(run.teacher)
    made = synthesize_set(teacher, run.synthesis, run.out, runtime=run)
    if made is None:
        return finish(
            run,
            None,
            {"set": run.out, "complete": False},
            f"part {run.rank} of {run.world} is done; others are not yet",
        )
    document = {
        "set": run.out,
        "complete": True,
        "images": len(made),
        "per_class": made.counts(),
        "short": made.manifest["short"],
    }
    document["seconds"] = sum(shard["seconds"] for shard in made.manifest["shards"])
    table = new_table(f"Transfer set {run.out}", "class", "images")
    for label, count in enumerate(made.counts()):
        table.add_row(str(label), str(count))
    table.caption = f"{len(made):,} images in {document['seconds']:.0f} s"
    status = finish(run, table, document)
    require_balance(document["short"], run.out)
    return status
