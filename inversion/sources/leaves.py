"""Dead leaves: flat random shapes hiding one another, a classic model of natural images' statistics
(Lee, Mumford, Huang 2001).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inversion.sources.random import Random

MOST = 400
"""Shapes in a picture; at the least radius of 3 % two pixels in a hundred are still bare then."""
SMALL = 0.1
"""Shapes of up to this radius, in units, are drawn in a window of their own."""
COVERED = 0.99
"""Part of a canvas at which it counts as covered: the last per cent would take many more shapes."""
LOOK = 16
"""Shapes between two looks at how much is bare."""


@dataclass(frozen=True)
class Leaves:
    """Circles, squares, triangles and quadrilaterals in uniform colours, radii with density r⁻³,
    until the canvas is covered.

    What 400 of them leave bare is one leaf behind all others.
    """

    smallest: float = 0.03
    """Least radius, as a part of the side of a square of this area; the largest is that side."""
    cover: float = 1.0
    """Part of the canvas to cover; the rest stays black. Little of it suits teachers of figures on
    a ground.
    """

    def draw(self, random: Random, count: int, channels: int, height: int, width: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1]."""
        # From front to back: a shape shows where nothing lies over it, so a picture is finished
        # once it is covered. Beside its colours, a canvas keeps how much of each pixel is still
        # bare.
        canvas = torch.zeros(count * height * width, channels + 1, device=random.device)
        canvas[:, -1] = 1
        left = torch.arange(count, device=random.device)
        for number in range(MOST):
            _lay(canvas, left, random, self.smallest, height, width)
            if number % LOOK == LOOK - 1 or self.cover < 1:
                bare = canvas[:, -1].view(count, -1)[left].mean(1)
                left = left[bare > 1 - min(self.cover, COVERED)]
                if not len(left):
                    break
        images, bare = canvas.view(count, -1, channels + 1).split((channels, 1), 2)
        if self.cover == 1:
            images = images + bare * random.uniform(count, 1, channels)
        return images.clamp(0, 1).transpose(1, 2).reshape(count, channels, height, width)


def _lay(
    canvas: Tensor,  # (count · H · W, C + 1)
    left: Tensor,  # (n,)
    random: Random,
    smallest: float,
    height: int,
    width: int,
) -> None:
    """Lay one shape behind what is on each canvas that is left."""
    values = canvas.shape[1]
    shapes = _shapes(random, len(left), smallest, height, width)
    colours = random.uniform(len(left), 1, values - 1)
    paints = torch.cat([colours, canvas.new_full((len(left), 1, 1), -1)], 2)
    for some, rows, columns in _windows(shapes, height, width):
        places = (rows[:, :, None] * width + columns[:, None]).flatten(1)
        flat = (left[some, None] * (height * width) + places).flatten()
        under = canvas.index_select(0, flat).view(*places.shape, values)
        mask = _covered(shapes[some], rows, columns)[:, :, None] * under[:, :, -1:]
        canvas.index_copy_(0, flat, under.addcmul_(mask, paints[some]).flatten(0, 1))


def _shapes(
    random: Random, count: int, smallest: float, height: int, width: int
) -> Tensor:  # (count, 16)
    """Random shapes: is it a circle, centre, radius, and of four sides the directions they face
    (cosines, sines) and distances.
    """
    # Radii of density r⁻³, by inversion.
    share = (smallest**-2 - random.uniform(count, 1) * (smallest**-2 - 1)).rsqrt()
    radius = math.sqrt(height * width) * share
    kind = random.integers(0, 3, count, 1)  # circle, square, triangle, quadrilateral
    even = torch.arange(4, device=random.device) / 4
    # The fourth corner falls on the third.
    thirds = torch.arange(4, device=random.device).clamp_max(2) / 3
    free = random.uniform(count, 4).sort(1).values
    corners = torch.where(kind == 1, even, torch.where(kind == 2, thirds, free))
    corners = corners + random.uniform(count, 1)
    spans = torch.cat([corners[:, 1:], corners[:, :1] + 1], 1) - corners
    facing = (corners + spans / 2) * 2 * math.pi
    # Corners lie on the circle of that radius; a side of no span is none.
    far = torch.where(spans > 0, radius * (spans * math.pi).cos(), torch.inf)
    x, y = random.uniform(count, 2).split(1, 1)
    return torch.cat([kind == 0, width * x, height * y, radius, facing.cos(), facing.sin(), far], 1)


def _windows(shapes: Tensor, height: int, width: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Which shapes are drawn together, and the rows and columns of the pixels each has to look
    at.
    """
    everyone = torch.arange(len(shapes), device=shapes.device)
    rows = torch.arange(height, device=shapes.device)
    columns = torch.arange(width, device=shapes.device)
    if shapes.device.type != "cpu":  # telling small from large would wait for the device
        return [(everyone, rows.expand(len(shapes), -1), columns.expand(len(shapes), -1))]
    unit = math.sqrt(height * width)
    is_small = shapes[:, 3] <= SMALL * unit
    side = math.ceil(2 * SMALL * unit) + 2
    near_rows = _window(shapes[is_small, 2], min(side, height), height)
    near_columns = _window(shapes[is_small, 1], min(side, width), width)
    large = everyone[~is_small]
    return [
        (everyone[is_small], near_rows, near_columns),
        (large, rows.expand(len(large), -1), columns.expand(len(large), -1)),
    ]


def _window(centre: Tensor, side: int, whole: int) -> Tensor:  # (n,) -> (n, side)
    """Places around a centre, none of them outside."""
    first = (centre - side / 2).round().long().clamp(0, whole - side)
    return first[:, None] + torch.arange(side)


def _covered(
    shapes: Tensor,  # (n, 16)
    rows: Tensor,  # (n, h)
    columns: Tensor,  # (n, w)
) -> Tensor:  # (n, h·w)
    """How much of each pixel the shape covers."""
    circle, x, y, radius, *sides = (part[:, :, None] for part in shapes.split(1, 1))
    across = (columns[:, None] + 0.5) - x
    down = (rows[:, :, None] + 0.5) - y
    distance = across * sides[0] + down * sides[4] - sides[8]
    for side in range(1, 4):
        beyond = across * sides[side] + down * sides[side + 4] - sides[side + 8]
        distance = torch.maximum(distance, beyond)
    around = (across.square() + down.square()).sqrt() - radius
    distance = torch.where(circle > 0, around, distance)
    return (0.5 - distance).clamp(0, 1).flatten(1)
