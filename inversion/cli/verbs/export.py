"""Merge sets, draw a part, write them for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distill.sets.exports import export as export_set
from distill.sets.merging import merge, subsample
from distill.sets.transfer_set import TransferSet
from inversion.classes import say_short
from inversion.cli.show import finish
from inversion.pages.verdict import read_verdict
from inversion.teacher_file import TEACHER_FILE
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
    notes = ""
    beside = {}
    if data is sets[0]:
        notes = read_verdict([Path(run.sets[0]), Path(run.sets[0]).parent], data.manifest)
    teacher = Path(run.sets[0]) / TEACHER_FILE
    if run.form == "set" and teacher.is_file():
        beside[TEACHER_FILE] = teacher.read_bytes()
    place = export_set(
        data,
        run.out,
        run.form,
        run.quiet,
        views=run.views,
        license=run.license,
        notes=notes,
        beside=beside,
    )
    counts = data.counts()
    short = data.manifest.get("short") or {}
    document = {
        "out": str(place),
        "form": run.form,
        "images": len(data),
        "views": run.views,
        "per_class": counts,
        "short": short,
    }
    lacks = f"; {say_short(short, data.class_names)}" if short else ""
    views = f", {run.views} views of each" if run.views else ""
    words = data.task.words
    spread = words.spread(counts, once=False)
    each = f"{spread} {words.measure}" if words.shares else spread
    line = f"{len(data):,} images{views}, {each} of each class"
    return finish(run, None, document, f"{line}: {place}{lacks}")
