"""Merge sets, draw a part, write them for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distill.sets.exports import export as export_set
from distill.sets.exports import merge, subsample
from distill.sets.transfer_set import TransferSet
from inversion.classes import say_short
from inversion.cli.show import finish
from inversion.teacher_file import copy_teacher
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from inversion.cli.schema import ExportRun


def execute(run: ExportRun) -> int:
    """Merge sets, draw from them, write them for others."""
    folders = {Path(folder).resolve() for folder in run.sets}
    if len(folders) < len(run.sets):
        raise EchosetError(f"a set is named twice: {', '.join(run.sets)}")
    sets = [TransferSet.load(folder) for folder in run.sets]
    data = merge(sets, run.sets)
    if run.images:
        data = subsample(data, run.images, run.seed)
    place = export_set(data, run.out, run.form, run.quiet)
    if run.form == "set":
        copy_teacher(Path(run.sets[0]), Path(run.out))
    counts = data.counts()
    short = data.manifest.get("short") or {}
    document = {
        "out": str(place),
        "form": run.form,
        "images": len(data),
        "per_class": counts,
        "short": short,
    }
    lacks = f"; {say_short(short, data.class_names)}" if short else ""
    line = f"{len(data):,} images, {min(counts)} to {max(counts)} of each class: {place}{lacks}"
    return finish(run, None, document, line)
