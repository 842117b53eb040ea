"""Pictures inside a page: a strip of them for each class."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from distill.names import show_class

COLUMNS = 16
"""Pictures of a class, at most."""
MOST_CLASSES = 20
SMALL = 48
"""Pictures lower than this are shown at twice their size."""
LARGEST = 64
"""Larger pictures are shrunk to this side, so that a page stays small."""


@dataclass(frozen=True)
class Strip:
    """Pictures of one class, side by side."""

    label: int
    name: str
    """The class's number and, where it has one, its name."""
    png: str
    """The file, in base64."""
    width: int
    """As shown, in pixels of the page."""
    height: int


@dataclass(frozen=True)
class Gallery:
    """Strips of the first classes that have pictures."""

    strips: list[Strip]
    more: int
    """Classes with pictures that are not shown."""


def gallery(
    images: NDArray[np.uint8],  # (N, C, H, W)
    groups: NDArray[np.int64],  # (N,) the class that each image counts for
    classes: int,
    names: Sequence[str] | None = None,
) -> Gallery:
    """A strip of pictures for each of the first classes that have any."""
    labels = [int(label) for label in np.unique(groups) if 0 <= label < classes]
    shown = labels[:MOST_CLASSES]
    strips = [_strip(label, show_class(label, names), images[groups == label]) for label in shown]
    return Gallery(strips, len(labels) - len(shown))


def _strip(label: int, name: str, images: NDArray[np.uint8]) -> Strip:  # (N, C, H, W)
    # Evenly spread over the stock, so that the gallery shows the class and not its best.
    columns = min(COLUMNS, len(images))
    chosen = np.linspace(0, len(images) - 1, columns).astype(int)
    small = np.stack([_shrunken(image) for image in images[chosen]])
    pixels = rearrange(small, "n c h w -> h (n w) c")
    height, width = pixels.shape[:2]
    zoom = 2 if height < SMALL else 1
    return Strip(label, name, _png(pixels), width * zoom, height * zoom)


def thumbnail(image: NDArray[np.uint8]) -> str:  # (C, H, W)
    """One small picture as a PNG in base64."""
    return _png(rearrange(_shrunken(image), "c h w -> h w c"))


def _shrunken(image: NDArray[np.uint8]) -> NDArray[np.uint8]:  # (C, H, W)
    """The picture at most `LARGEST` pixels wide and high."""
    height, width = image.shape[1:]
    longest = max(height, width)
    if longest <= LARGEST:
        return image
    size = (max(1, width * LARGEST // longest), max(1, height * LARGEST // longest))
    planes = [Image.fromarray(plane).resize(size, Image.Resampling.BOX) for plane in image]
    return np.stack([np.asarray(plane) for plane in planes])


def _png(pixels: NDArray[np.uint8]) -> str:  # (H, W, C)
    # A second or fourth channel would be taken for transparency.
    pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
