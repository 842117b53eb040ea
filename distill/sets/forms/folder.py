"""Pictures in one folder a class, as torchvision's ImageFolder, timm and Hugging Face read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from distill.names import folder_ending
from distill.sets.forms.content import Content, Progress
from distill.tasks.places import count_decisions

ANSWERS = "answers.npz"
"""The teacher's logits of each picture, in the order in which ImageFolder reads them."""

SPLIT = "train-"
"""Before each picture's name: Hugging Face's imagefolder finds splits by such words, and would else
take `train_elsewhere.py` for the whole of the training split.
"""


def write_folder(content: Content, folder: Path, progress: Progress) -> None:
    """PNG files; names of folders are padded with zeros, so that names and classes sort alike."""
    data = content.data
    task = data.task
    names = data.class_names
    task.check_folders(count_decisions(content.labels, data.classes).tolist())
    logits = {}
    for number, picture in enumerate(content.pictures()):
        place = task.picture_folder(picture.label, data.classes)
        if names and place.isdecimal():  # the class's own
            place += folder_ending(names[int(place)])
        name = SPLIT + picture.name
        path = f"{place}/{name}.png"
        files = {path: picture.png, **task.folder_files(picture.label, name)}
        for file, written in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(written)
        logits[path] = picture.logits
        progress(number + 1)
    paths = sorted(logits)
    rows = torch.stack([logits[path] for path in paths])
    np.savez(folder / ANSWERS, files=np.array(paths), logits=rows.numpy())
