"""Forms that a set is written in for others: one file a form, and one line in `WRITERS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distill.options import ExportForm
from distill.sets.forms.again import write_again
from distill.sets.forms.content import Content, Progress
from distill.sets.forms.folder import write_folder
from distill.sets.forms.npz import write_npz
from distill.sets.forms.webdataset import write_webdataset

WRITERS: dict[ExportForm, Callable[[Content, Path, Progress], None]] = {
    "folder": write_folder,
    "npz": write_npz,
    "webdataset": write_webdataset,
    "set": write_again,
}
