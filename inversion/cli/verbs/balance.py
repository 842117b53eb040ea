"""What a synthesised set lacks: made of its own images, told, or refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from distill.locks import in_turn
from distill.sets.transfer_set import TransferSet
from inversion.classes import say_filled, say_imbalance, say_short
from inversion.cli.show import tell
from inversion.filling import fill_short, fitting_ways, forget_filling, missing_images
from inversion.options.collect import USUAL_WAYS, MakingWay
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distill.models import Classifier
    from inversion.cli.schema import DemoRun, SynthesizeRun

MUCH = 0.25
"""Part of a set from which on a line says that its generator made too little of it."""
LOCK = ".filling.lock"
"""In a set's folder: held while it is filled."""
FILL = "; or leave --short out of the same command, to make what is missing of the others"
"""What else helps where nothing was made for short classes, …"""
MORE = "; or name more ways to make what is missing: --short push augment mixup"
"""… and where not all ways were tried."""


def fill(
    run: DemoRun | SynthesizeRun, transfer_set: TransferSet, teacher: Classifier, folder: Path | str
) -> TransferSet:
    """The set of the folder, and what --short makes of the images that it lacks."""
    if not missing_images(transfer_set):
        forget_filling(folder)
        return transfer_set
    if not run.shortage:
        return transfer_set
    waiting = partial(tell, run, f"another process fills {folder}: waiting for it")
    with in_turn(Path(folder) / LOCK, "fill", waiting):
        transfer_set = TransferSet.load(folder)
        if not missing_images(transfer_set):
            return transfer_set
        return _fill(run, transfer_set, teacher, folder)


def _fill(
    run: DemoRun | SynthesizeRun, transfer_set: TransferSet, teacher: Classifier, folder: Path | str
) -> TransferSet:
    """The set with what the ways make, and a line about it."""
    try:
        filled = fill_short(transfer_set, teacher, run.shortage, folder, runtime=run)
    except EchosetError as error:
        if run.shortage != USUAL_WAYS:
            raise
        # Where nobody asked for it, the set that there is counts.
        tell(run, f"{folder}: what is missing could not be made: {error}")
        return transfer_set
    made = len(filled) - len(transfer_set)
    if not made:
        ways = " and ".join(fitting_ways(transfer_set.task, run.shortage))
        tell(run, f"{folder}: {ways} made none of the missing images")
        return filled
    told = say_filled(filled.manifest)
    if made > MUCH * len(filled):
        share = f"{made / len(filled):.0%} of the set"
        told = f"{told}, {share}: for more of the generator's, raise synthesis.calls"
    tell(run, f"{folder}: {told}")
    return filled


def require_balance(
    run: DemoRun | SynthesizeRun, transfer_set: TransferSet, folder: Path | str
) -> None:
    """Refuse a set that lacks images, and tell of one that has them and is not balanced in pixels,
    which can't be helped.
    """
    short = transfer_set.manifest["short"]
    if transfer_set.task.exact:
        if short:
            told = say_short(short, transfer_set.class_names)
            raise EchosetError(
                f"{folder} is written but not balanced: {told}. "
                "The teacher gave too few of the generated images these classes; raise "
                f"synthesis.objective.classes or synthesis.calls{_remedy(run.shortage)}"
            )
        return
    if short:
        tell(run, say_imbalance(folder, transfer_set))
    missing = missing_images(transfer_set)
    if missing:
        remedy = "" if run.shortage else FILL
        raise EchosetError(
            f"{folder} is written but {missing:,} of {run.synthesis.images:,} images short. The "
            "teacher saw too little of some classes in what was generated; raise synthesis.calls"
            f"{remedy}"
        )


def _remedy(ways: Sequence[MakingWay]) -> str:
    """What else helps where classes are short after these ways."""
    if not ways:
        return FILL
    return MORE if set(ways) < set(get_args(MakingWay)) else ""
