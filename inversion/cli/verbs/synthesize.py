"""Make a transfer set from a teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from distill.tracking import open_tracker
from inversion.classes import class_rows
from inversion.cli.show import finish, new_table
from inversion.cli.verbs.answering import carry_answers, check_answers, say_carried
from inversion.cli.verbs.balance import fill, require_balance
from inversion.cli.verbs.shared import tell_if_kept, when_finished
from inversion.driver import synthesize_share
from inversion.health import check_health
from inversion.teacher import load_teacher
from inversion.together import works_together

if TYPE_CHECKING:
    from inversion.cli.schema import SynthesizeRun


def execute(run: SynthesizeRun) -> int:
    """Make a set, or this process's part of one."""
    together = works_together(run.synthesis, run)
    helps = together and run.rank > 0
    if helps:
        run = replace(run, quiet=True)
    teacher = load_teacher(run.teacher, trust=run.trust)
    check_health(teacher, run)
    check_answers(run.answers, teacher, run.synthesis.images)
    before = when_finished(run.out)
    logger = None if helps else open_tracker(run.track, run.out, run.rank)
    transfer_set = synthesize_share(teacher, run.synthesis, run.out, runtime=run, log=logger)
    if helps:
        return 0
    if transfer_set is None:
        last = "process 0 finishes the set" if run.claims else "others are not yet"
        line = f"part {run.rank} of {run.world} is done; {last}"
        return finish(run, None, {"set": run.out, "complete": False}, line)
    if together:
        run = replace(run, rank=0, world=1)  # the others have ended
    transfer_set = fill(run, transfer_set, teacher, run.out)
    transfer_set = carry_answers(run, transfer_set, teacher, run.out)
    tell_if_kept(run, before, " go on with it: raise --synthesis.calls;")
    manifest = transfer_set.manifest
    counts = transfer_set.counts()
    seconds = sum(shard["seconds"] for shard in manifest["shards"])
    document = {
        "set": run.out,
        "complete": True,
        "images": len(transfer_set),
        "per_class": counts,
        "short": manifest["short"],
        "seconds": seconds,
    }
    words = transfer_set.task.words
    table = new_table(f"Transfer set {run.out}", "class", words.heading)
    for row in class_rows([counts], transfer_set.class_names, words.shares):
        table.add_row(*row)
    carried = say_carried(transfer_set)
    table.caption = f"{len(transfer_set):,} images in {seconds:.0f} s{carried}"
    status = finish(run, table, document)
    require_balance(run, transfer_set, run.out)
    return status
