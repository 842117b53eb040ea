"""Label maps: pictures whose values are classes, one a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distill.data.pictures import open_picture
from distill.sizes import Size, sides
from distill.tasks import find_task
from distill.tasks.places import VOID
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from PIL.Image import Image

    from distill.models.classifier import ModelSpec

PIXEL = 24
"""Bytes that a pixel of a map takes while it is read, about: values, their copy, comparisons."""
SCALED = {"L;2": 85, "L;4": 17}
"""Grey pictures of 2 and 4 bits, which Pillow stretches to 0 … 255 by these factors."""


@dataclass(frozen=True)
class Maps:
    """Labels that are maps, one class a pixel."""

    void: int = 255
    """The value in a label map where nothing is known."""
    classes: int | None = None
    """How many classes there are, to refuse values beyond them; None: whatever there is."""


def maps_for(spec: ModelSpec, void: int) -> Maps | None:
    """The label maps that a network is judged and taught by; None where labels are none."""
    if not find_task(spec.task).label_maps:
        return None
    return Maps(void, spec.classes)


def read_map(path: Path, maps: Maps) -> Tensor:  # (H, W) int64
    """One label map, `VOID` where nothing is known; one that can't be is refused."""
    try:
        with open_picture(path, PIXEL) as picture:
            values = torch.from_numpy(_values(picture, path))
    except EchosetError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds
        raise EchosetError(f"{path} is not a readable picture: {error}") from error
    return to_labels(values, str(path), maps)


def to_labels(values: Tensor, name: str, maps: Maps) -> Tensor:  # (*places) int64
    """Values of label maps as labels, in place; the `name` is for the message."""
    known = values != maps.void
    if not known.any():
        raise EchosetError(
            f"{name}: no place of this label map is known, all are {maps.void}; if that is a "
            "class, say --void and the value of unknown places, else take the map and its picture "
            "out of the data"
        )
    highest = int(values[known].max())
    if maps.classes is not None and highest >= maps.classes:
        raise EchosetError(
            f"{name} has the value {highest}, and the classes are 0 to {maps.classes - 1}; if it "
            f"marks places where nothing is known, say --void {highest} (now {maps.void})"
        )
    return values.masked_fill_(~known, VOID)


def _values(picture: Image, path: Path) -> np.ndarray:  # (H, W) int64
    if picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        raise EchosetError(
            f"{path} is a picture of kind {picture.mode}; a label map is a PNG, grey or indexed, "
            "whose values are classes: turn each colour into the number of its class first"
        )
    tiles = getattr(picture, "tile", [])  # Pillow's own, of files alone
    factor = SCALED.get(str(tiles[0][3]), 1) if tiles else 1
    return np.asarray(picture).astype(np.int64) // factor


def fit_maps(maps: Tensor, size: Size) -> Tensor:  # (N, H, W) -> (N, height, width)
    """Resize by the nearest neighbour; maps that fit already come back as they are."""
    wanted = sides(size)
    if tuple(maps.shape[1:]) == wanted:
        return maps
    rows, columns = (
        _nearest(have, want, maps.device) for have, want in zip(maps.shape[1:], wanted, strict=True)
    )
    return maps[:, rows][:, :, columns]


def _nearest(have: int, want: int, device: torch.device) -> Tensor:  # (want,) int64
    """For each of `want` places, the one of `have` under its middle."""
    middles = 2 * torch.arange(want, device=device) + 1
    return middles * have // (2 * want)
