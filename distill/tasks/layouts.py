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
MARGIN = 1 / 24
"""Of the shorter side: so wide is what is left open on either side of an edge."""


def draw_layouts(
    wanted: Tensor,  # (B,) the class that each map shows most of
    classes: int,
    size: tuple[int, int],
    random: torch.Generator,
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

    nearest = _nearest(draws[2:], height, width)
    maps = labels.gather(1, nearest.flatten(1)).unflatten(1, size)
    return torch.where(near_edges(maps, int(MARGIN * min(size))), VOID, maps)


def _nearest(draws: Tensor, height: int, width: int) -> Tensor:  # (4, B, S) -> (B, H, W) int64
    """The number of the segment that each place belongs to."""
    rows = torch.arange(height, device=draws.device)[:, None] + 0.5
    columns = torch.arange(width, device=draws.device) + 0.5
    best = torch.full((draws.shape[1], height, width), torch.inf, device=draws.device)
    nearest = torch.zeros_like(best, dtype=torch.int64)
    for number in range(SEGMENTS):  # one at a time: large maps would take much memory
        down, across, turn, stretch = (each[:, None, None] for each in draws[..., number])
        angle = turn * math.pi
        longer = STRETCH ** (stretch - 0.5)
        below = rows - down * height
        beside = columns - across * width
        along = (angle.cos() * below + angle.sin() * beside) * longer
        aside = (angle.cos() * beside - angle.sin() * below) / longer
        distance = along.square() + aside.square()
        nearest = torch.where(distance < best, number, nearest)
        best = torch.minimum(best, distance)
    return nearest


def near_edges(maps: Tensor, margin: int) -> Tensor:  # (B, H, W) -> (B, H, W) bool
    """Whether another label lies within `margin` pixels."""
    if not margin:
        return torch.zeros_like(maps, dtype=torch.bool)
    values = maps[:, None].float()
    side = 2 * margin + 1
    highest = F.max_pool2d(values, side, 1, margin)
    lowest = -F.max_pool2d(-values, side, 1, margin)
    return (highest != lowest)[:, 0]
