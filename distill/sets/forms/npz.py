"""Everything in one file for NumPy: `set.npz`, which lies beside every export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.recorded import is_recorded, record_views
from distill.sets.answers import ViewAnswers
from distill.sets.forms.content import Content, Progress, channels_last
from distill.sets.transfer_set import TransferSet

FILE = "set.npz"


def write_npz(content: Content, folder: Path, progress: Progress) -> None:
    """The set's arrays, and the teacher's answers with what makes their views; with `views` those
    themselves as pictures.
    """
    data = content.data
    arrays: dict[str, Any] = {"labels": data.labels.numpy(), "priority": data.priority.numpy()}
    if data.has_logits:
        arrays["logits"] = data.logits.numpy()
    contract = data.manifest["input"]
    if data.class_names:
        arrays["class_names"] = np.array(data.class_names)
    if data.answers is not None:
        arrays |= _arrays_of_views(content)
    with open(folder / FILE, "wb") as file:
        np.savez(
            file,
            images=channels_last(data.images),
            **arrays,
            mean=np.array(contract["mean"]),
            std=np.array(contract["std"]),
        )
    progress(len(content))


def _arrays_of_views(content: Content) -> dict[str, np.ndarray]:
    """Answers, (N, V, K) or (N, V, K, h, w), and their views: as numbers where that is enough."""
    answers = content.answers
    told = answers.tensor
    if not content.views and is_recorded(answers.views):
        return {"answers": told.numpy(), **_numbers(content.data, answers)}
    shown = Content(content.data, content.views or answers.per_image)
    pictures = channels_last(shown.view_images(0, len(content.data)))
    return {"answers": told[:, : shown.views].numpy(), "views": pictures}


def _numbers(data: TransferSet, answers: ViewAnswers) -> dict[str, np.ndarray]:
    """`turns` (N, V, 2, 3), `partners` (N, V) and `boxes` (N, V, 4)."""
    index = torch.arange(len(data))
    rows: dict[str, list[Tensor]] = {"turns": [], "partners": [], "boxes": []}
    for view in range(answers.per_image):
        recorded = record_views(
            data.images, index, torch.full_like(index, view), answers.views, answers.seed
        )
        for name, row in zip(rows, recorded, strict=True):
            rows[name].append(row)
    return {name: torch.stack(row, 1).numpy() for name, row in rows.items()}
