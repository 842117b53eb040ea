"""Pictures inside a page: a strip of them for each class."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from distill.data.palette import css_colour
from distill.names import show_class

COLUMNS = 16
"""Pictures of a class, at most."""
MOST_CLASSES = 20
MOST_COLOURS = 60
"""Of a legend."""
SMALL = 48
"""Pictures lower than this are shown at twice their size."""
LARGEST = 64
"""Larger pictures are shrunk to this side, so that a page stays small."""
PANEL = 192
"""The same of pictures side by side that are to be compared."""
BESIDE = 4
"""Pixels between these."""

Paint = Callable[[NDArray[np.int64]], NDArray[np.uint8] | None]
"""Gives the painted label maps of images, (n,) -> (n, 3, H, W); None where they have none."""


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
    legend: list[tuple[str, str]] = field(default_factory=list)
    """Colours and names of classes, where pictures have label maps."""


def gallery(
    images: NDArray[np.uint8],  # (N, C, H, W)
    groups: NDArray[np.int64],  # (N,) the class that each image counts for
    classes: int,
    names: Sequence[str] | None = None,
    paint: Paint | None = None,
) -> Gallery:
    """A strip of pictures for each of the first classes that have any; below them their label maps,
    where `paint` gives some.
    """
    labels = [int(label) for label in np.unique(groups) if 0 <= label < classes]
    shown = labels[:MOST_CLASSES]
    strips = []
    has_maps = False
    for label in shown:
        places = _spread(np.flatnonzero(groups == label))
        maps = paint(places) if paint else None
        has_maps = maps is not None
        strips.append(_strip(label, show_class(label, names), images[places], maps))
    return Gallery(strips, len(labels) - len(shown), legend(classes, names) if has_maps else [])


def legend(classes: int, names: Sequence[str] | None) -> list[tuple[str, str]]:
    """The colour and the name of each class, of the first that a palette tells apart."""
    labels = range(min(classes, MOST_COLOURS))
    return [(css_colour(label), show_class(label, names)) for label in labels]


def _spread(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some of them, evenly spread over the stock: a gallery shows the class and not its best."""
    columns = min(COLUMNS, len(places))
    return places[np.linspace(0, len(places) - 1, columns).astype(int)]


def _strip(
    label: int,
    name: str,
    images: NDArray[np.uint8],  # (n, C, H, W)
    maps: NDArray[np.uint8] | None,  # (n, 3, H, W)
) -> Strip:
    small = np.stack([shrunken(image) for image in images])
    zoom = 2 if small.shape[2] < SMALL else 1
    if maps is not None:
        below = np.stack([shrunken(each, exact=True) for each in maps])
        small = np.concatenate([in_colours(small), below], 2)
    pixels = rearrange(small, "n c h w -> h (n w) c")
    height, width = pixels.shape[:2]
    return Strip(label, name, _png(pixels), width * zoom, height * zoom)


def thumbnail(image: NDArray[np.uint8], painted: NDArray[np.uint8] | None = None) -> str:
    """One small picture, (C, H, W), as a PNG in base64; beside it its painted label map."""
    if painted is not None:
        return panels([image], [painted], LARGEST)
    return _png(rearrange(shrunken(image), "c h w -> h w c"))


def panels(
    images: Sequence[NDArray[np.uint8]],  # of (C, H, W)
    maps: Sequence[NDArray[np.uint8]],  # of (3, H, W)
    most: int = PANEL,
) -> str:
    """Images, and painted label maps beside them, as one PNG in base64."""
    shown = [in_colours(shrunken(image, most)) for image in images]
    shown += [shrunken(each, most, exact=True) for each in maps]
    gap = np.full((3, shown[0].shape[1], BESIDE), 255, np.uint8)
    parts = [part for picture in shown for part in (gap, picture)][1:]
    return _png(rearrange(np.concatenate(parts, 2), "c h w -> h w c"))


def in_colours(image: NDArray[np.uint8]) -> NDArray[np.uint8]:  # (…, C, H, W) -> (…, 3, H, W)
    """An image with the channels of a painted map: of more than three the first three."""
    if image.shape[-3] < 3:
        return np.repeat(image[..., :1, :, :], 3, -3)
    return image[..., :3, :, :]


def shrunken(
    image: NDArray[np.uint8],  # (C, H, W)
    most: int = LARGEST,
    exact: bool = False,
) -> NDArray[np.uint8]:
    """The picture at most so many pixels wide and high; `exact` colours are not blended."""
    height, width = image.shape[1:]
    longest = max(height, width)
    if longest <= most:
        return image
    size = (max(1, width * most // longest), max(1, height * most // longest))
    way = Image.Resampling.NEAREST if exact else Image.Resampling.BOX
    planes = [Image.fromarray(plane).resize(size, way) for plane in image]
    return np.stack([np.asarray(plane) for plane in planes])


def _png(pixels: NDArray[np.uint8]) -> str:  # (H, W, C)
    # A second or fourth channel would be taken for transparency.
    pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
