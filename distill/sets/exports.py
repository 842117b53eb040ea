"""Transfer sets in the forms that other trainers read (`distill.sets.forms`).

What is written beside a picture is the task's own (`distill.tasks`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from distill.files import write_json
from distill.loop import StepProgress
from distill.options import ExportForm
from distill.sets.card import UNKNOWN, write_card
from distill.sets.forms import WRITERS
from distill.sets.forms.content import Content
from distill.sets.forms.npz import write_npz
from distill.sets.placing import place
from distill.sets.transfer_set import TransferSet
from synthesis_kernels.errors import EchosetError, suggest

SCRIPT = "train_elsewhere.py"
"""Trains a student with numpy and torch alone; it lies beside every export."""


def export(
    data: TransferSet,
    out: str | Path,
    form: ExportForm = "folder",
    quiet: bool = True,
    *,
    views: int = 0,
    license: str = UNKNOWN,
    notes: str = "",
    beside: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the set for other trainers; whatever stops it, `out` appears whole or not at all. The
    same call goes on where a killed one was, and refuses to run twice at once.

    folder: one folder of PNGs per class, its name padded with zeros, so that names and classes sort
    alike (torchvision's ImageFolder, timm, Hugging Face's imagefolder), and the logits as
    answers.npz; where labels are maps, pictures in `images` and maps in `labels`, indexed PNGs of
    the same names. npz: `images` (N,H,W[,C]) uint8, `labels`, `logits`, `priority`, `mean`, `std`;
    of a set with answers to views these, and what makes the views. webdataset: tar archives of
    .png, .cls or, where labels are maps, .seg.png, and .npy (the logits). set: a transfer set
    again. With `views`, pictures are of so many views of each image, each with its own answer.

    All have beside them the npz, a script that trains a student on it, a data set's card with
    `license` and `notes`, the manifest as about.json (but for a set), and the files in `beside`.
    Where classes have names, a class's folder ends in its own, folders of label maps have
    classes.txt beside them, and npz has `class_names`.
    """
    if form not in WRITERS:
        known = ", ".join(WRITERS)
        raise EchosetError(
            f"form must be one of {known}, got {form!r}{suggest(str(form), WRITERS)}"
        )
    out = Path(out)
    content = Content(data, views)

    def write(folder: Path) -> None:
        with StepProgress(f"writing {out}", len(content), quiet) as progress:
            WRITERS[form](content, folder, progress.update)
        _write_beside(content, form, folder)
        write_card(content, form, folder, license, notes)
        for name, written in (beside or {}).items():
            (folder / name).write_bytes(written)

    told = [form, views, license, notes, data.manifest]
    place(out, sha256(json.dumps(told).encode()).hexdigest(), write)
    return out


def _write_beside(content: Content, form: ExportForm, folder: Path) -> None:
    """What every export has: the arrays to learn from, the script that does, and the manifest."""
    if form != "npz":
        write_npz(Content(content.data), folder, _nobody)
    if form != "set":
        write_json(folder / "about.json", dict(content.data.manifest))
    script = files("distill.sets.forms").joinpath(SCRIPT)
    (folder / SCRIPT).write_bytes(script.read_bytes())


def _nobody(written: int) -> None:
    """Is told of the progress where somebody else tells it."""
