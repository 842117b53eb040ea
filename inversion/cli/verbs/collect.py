"""Choose a transfer set from sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inversion.classes import class_rows, say_short
from inversion.cli.show import finish, new_table
from inversion.cli.verbs.answering import carry_answers, check_answers, say_carried
from inversion.cli.verbs.shared import teacher_for, tell_if_kept, when_finished
from inversion.health import check_health
from inversion.sources.collect import collect_share
from inversion.teacher import load_teacher
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from rich.table import Table

    from distill.sets.transfer_set import TransferSet
    from inversion.cli.schema import CollectRun


def execute(run: CollectRun) -> int:
    """Choose a set from sources."""
    teacher = load_teacher(teacher_for(run.teacher, run.sources), trust=run.trust)
    check_health(teacher, run)
    check_answers(run.answers, teacher, run.collection.images)
    before = when_finished(run.out)
    transfer_set = collect_share(teacher, run.sources, run.collection, run.out, runtime=run)
    if transfer_set is None:
        line = "this process's part is done; process 0 writes the set"
        return finish(run, None, {"set": run.out, "complete": False}, line)
    transfer_set = carry_answers(run, transfer_set, teacher, run.out)
    tell_if_kept(run, before)
    account = transfer_set.manifest["collection"]
    document = {
        "set": run.out,
        "images": len(transfer_set),
        "per_class": transfer_set.counts(),
        **account,
    }
    status = finish(run, _new_table(run, transfer_set, account), document)
    if account["missing"]:
        raise EchosetError(_say_missing(run, account, transfer_set.class_names))
    return status


def _new_table(run: CollectRun, transfer_set: TransferSet, account: dict[str, Any]) -> Table:
    """Where the images of each class came from."""
    ways = list(account["taken"])
    words = transfer_set.task.words
    held = f"{words.heading} in the set" if words.shares else "in the set"
    names = ("class", "drawn", "accepted", "full after", *ways, held)
    table = new_table(f"Transfer set {run.out}", *names)
    taken = [account["taken"][way] for way in ways]
    columns = [account["raw_counts"], account["accepted"], *taken]
    shown = transfer_set.class_names
    held_rows = class_rows([transfer_set.counts()], shown, words.shares)
    rows = [
        (*row, count) for row, (_, count) in zip(class_rows(columns, shown), held_rows, strict=True)
    ]
    needed = account["needed"] if len(rows) == len(account["needed"]) else [None] * len(rows)
    for (label, drawn, accepted, *more), full in zip(rows, needed, strict=True):
        table.add_row(label, drawn, accepted, f"{full:,}" if full else "–", *more)
    caption = (
        f"{account['drawn']:,} images drawn, {len(transfer_set):,} in the set, "
        f"{account['seconds']:.0f} s; class coverage before choosing {account['raw_coverage']:.3f}"
        f"{say_carried(transfer_set)}"
    )
    exposed = [f"{share:.0%} of {name}" for name, share in account["exposed"].items() if share]
    if exposed:
        caption += f"; shown as figures on black: {', '.join(exposed)}"
    table.caption = caption
    return table


def _say_missing(run: CollectRun, account: dict[str, Any], names: Sequence[str] | None) -> str:
    """What the set lacks, and what might help."""
    message = f"{run.out} is written but {account['missing']} images short"
    if account["short"]:
        message += f": {say_short(account['short'], names)}"
    turned_away = account["drawn"] - sum(account["accepted"])
    if turned_away:
        message += (
            f"; {turned_away:,} of {account['drawn']:,} lay outside confidence, margin or only"
        )
    message += ". Add a --source, raise --collection.draws where a source has no end"
    if run.collection.balanced:
        message += ", or a further way of filling classes to --short"
    return message
