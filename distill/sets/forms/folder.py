"""Pictures in folders, as torchvision's ImageFolder, timm and Hugging Face read them: one a class,
or one of images and one of label maps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from distill.names import folder_ending
from distill.sets.forms.content import Content, Progress
from distill.tasks.places import count_decisions

ANSWERS = "answers.npz"
"""The teacher's logits of each picture, in the order in which ImageFolder reads them."""
METADATA = "metadata.jsonl"
"""What Hugging Face's imagefolder reads of labels that are files."""
NAMES = "classes.txt"
"""Names of the classes, one a line."""

SPLIT = "train-"
"""Before each picture's name: Hugging Face's imagefolder finds splits by such words, and would else
take `train_elsewhere.py` for the whole of the training split.
"""


def write_folder(content: Content, folder: Path, progress: Progress) -> None:
    """PNG files; names of folders are padded with zeros, so that names and classes sort alike. What
    lies beside a picture is the task's own.
    """
    data = content.data
    task = data.task
    names = data.class_names
    task.check_folders(count_decisions(content.labels, data.classes).tolist())
    logits = {}
    rows = []
    for number, picture in enumerate(content.pictures()):
        place = task.picture_folder(picture.label, data.classes)
        if names and place.isdecimal():  # the class's own
            place += folder_ending(names[int(place)])
        name = SPLIT + picture.name
        path = f"{place}/{name}.png"
        labels = task.folder_files(picture.label, name)
        rows += [{"image_file_name": path, "label_file_name": file} for file in labels]
        for file, written in {path: picture.png, **labels}.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(written)
        logits[path] = picture.logits
        progress(number + 1)
    if rows:
        _write_pairs(rows, names, folder)
    paths = sorted(logits)
    stacked = torch.stack([logits[path] for path in paths])
    if stacked.numel():
        np.savez(folder / ANSWERS, files=np.array(paths), logits=stacked.numpy())


def _write_pairs(rows: list[dict[str, str]], names: Sequence[str] | None, folder: Path) -> None:
    """Which label belongs to which picture, and what the classes are called, as no folder is."""
    lines = [json.dumps(row) for row in rows]
    (folder / METADATA).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if names:
        (folder / NAMES).write_text("\n".join(names) + "\n", encoding="utf-8")
