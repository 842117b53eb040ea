"""Tar archives, as the package webdataset, timm and Hugging Face read them."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np

from distill.sets.forms.content import Content, Picture, Progress

SHARD = 5000
"""Most pictures in one archive."""
INFO = "_info.json"
"""Where timm looks for the archives and their lengths."""


def write_webdataset(content: Content, folder: Path, progress: Progress) -> None:
    """Archives of .png, .cls (the class) or what the task has, and .npy (the logits), and a list of
    them for timm.
    """
    pictures = content.pictures()
    lengths = {}
    written = 0
    for index, first in enumerate(range(0, len(content), SHARD)):
        name = f"set-{index:05d}.tar"
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as archive:
            for picture in islice(pictures, SHARD):
                _add(archive, content, picture)
                written += 1
                progress(written)
        lengths[name] = written - first
    split = {
        "name": "train",
        "filenames": list(lengths),
        "shard_lengths": list(lengths.values()),
        "num_samples": written,
    }
    (folder / INFO).write_text(json.dumps({"splits": {"train": split}}, indent=1) + "\n")


def _add(archive: tarfile.TarFile, content: Content, picture: Picture) -> None:
    files = {"png": picture.png, **content.data.task.label_files(picture.label)}
    if picture.logits.numel():
        logits = io.BytesIO()
        np.save(logits, picture.logits.numpy())
        files["npy"] = logits.getvalue()
    for suffix, data in files.items():
        _add_file(archive, f"{picture.name}.{suffix}", data)


def _add_file(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """A file without owner or time: equal sets give equal bytes."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
