"""Colours of label maps: one palette for files, cards and pages."""

from __future__ import annotations

import io
import itertools
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CHOSEN = (
    "#4363d8", "#e6194b", "#3cb44b", "#ffe119", "#911eb4", "#f58231", "#46f0f0", "#f032e6",
    "#9a6324", "#bcf60c", "#000075", "#fabebe", "#008080", "#800000", "#aaffc3", "#808000",
    "#e6beff", "#808080", "#ffd8b1", "#fffac8",
)  # fmt: skip
"""Of the first classes: the distinct colours that Sasha Trubetskoy collected."""
VOID_COLOUR = (0, 0, 0)
"""Where nothing is known."""
VOID_VALUE = 255
"""What stands for that in a file; colours of classes end before it."""
LEVELS = range(15, 256, 24)
"""Of each primary, for colours of further classes."""


@cache
def colours() -> tuple[tuple[int, int, int], ...]:
    """Red, green and blue for each value of a byte. After the chosen ones each is the colour of a
    grid that is furthest from all before it.
    """
    drawn = [_parse(colour) for colour in CHOSEN]
    grid = np.array(list(itertools.product(LEVELS, repeat=3)))
    apart = np.full(len(grid), np.inf)
    for colour in (VOID_COLOUR, *drawn):
        apart = np.minimum(apart, _distances(grid, colour))
    while len(drawn) < VOID_VALUE:
        red, green, blue = grid[apart.argmax()].tolist()
        drawn.append((red, green, blue))
        apart = np.minimum(apart, _distances(grid, drawn[-1]))
    return (*drawn, VOID_COLOUR)


def _distances(grid: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:  # (n, 3) -> (n,)
    return np.square(grid - colour).sum(1)


def _parse(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


def css_colour(label: int) -> str:
    """A class's colour, as `#rrggbb`."""
    return f"#{bytes(colours()[label % (VOID_VALUE + 1)]).hex()}"


def paint(maps: Tensor) -> Tensor:  # (..., H, W) labels -> (..., 3, H, W) uint8
    """Label maps in colours."""
    table = torch.tensor(colours(), dtype=torch.uint8, device=maps.device)
    return table[_as_bytes(maps).long()].movedim(-1, -3)


def to_indexed_png(label: Tensor) -> bytes:  # (H, W)
    """A label map as a PNG with this palette: the value of a pixel is its class."""
    picture = Image.fromarray(_as_bytes(label).numpy(force=True)).convert("P")
    picture.putpalette([part for colour in colours() for part in colour])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _as_bytes(maps: Tensor) -> Tensor:
    return torch.where(maps.long() < 0, VOID_VALUE, maps.long()).to(torch.uint8)
