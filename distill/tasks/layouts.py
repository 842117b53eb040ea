"""Label maps that nobody drew: a plane of flat, stretched segments, as what images are to show."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.tasks.places import VOID

SEGMENTS = 12
"""Of one map. Several may have the same class, and lie beside each other."""
OWN = 0.5
"""Chance of a segment to have the class that its map is drawn for; the others have any class."""
STRETCH = 4.0
"""How much longer than wide a segment may be, at most."""
MARGIN = 4
"""Pixels on either side of an edge that are left open."""


def draw_layouts(
    wanted: Tensor,  # (B,) the class that each map shows most of
    classes: int,
    size: tuple[int, int],
    random: torch.Generator,
    margin: int = MARGIN,
) -> Tensor:  # (B, H, W) int64, VOID along the edges
    """Random maps. A place belongs to the nearest of `SEGMENTS` points, each of which measures
    distance by an ellipse of its own.
    """
    count = len(wanted)
    height, width = size
    device = wanted.device
    shape = (count, SEGMENTS)
    draws = torch.rand(6, *shape, generator=random, device=device)
    any_class = (draws[0] * classes).long().clamp_max(classes - 1)
    labels = torch.where(draws[1] < OWN, wanted[:, None], any_class)
    labels[:, 0] = wanted

    down, across = draws[2] * height, draws[3] * width
    angle = draws[4] * math.pi
    stretch = STRETCH ** (draws[5] - 0.5)
    rows = torch.arange(height, device=device)[:, None] + 0.5 - down[..., None, None]
    columns = torch.arange(width, device=device) + 0.5 - across[..., None, None]
    cosine, sine = angle.cos()[..., None, None], angle.sin()[..., None, None]
    along = (cosine * rows + sine * columns) * stretch[..., None, None]
    aside = (cosine * columns - sine * rows) / stretch[..., None, None]
    nearest = (along.square() + aside.square()).argmin(1)  # (B, H, W)
    maps = labels.gather(1, nearest.flatten(1)).unflatten(1, size)
    return torch.where(near_edges(maps, margin), VOID, maps)


def near_edges(maps: Tensor, margin: int) -> Tensor:  # (B, H, W) -> (B, H, W) bool
    """Whether another label lies within `margin` pixels."""
    if not margin:
        return torch.zeros_like(maps, dtype=torch.bool)
    values = maps[:, None].float()
    side = 2 * margin + 1
    highest = F.max_pool2d(values, side, 1, margin)
    lowest = -F.max_pool2d(-values, side, 1, margin)
    return (highest != lowest)[:, 0]
