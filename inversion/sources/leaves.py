"""Dead leaves: flat random shapes hiding one another, a classic model of natural images' statistics
(Lee, Mumford, Huang 2001).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inversion.sources.random import Random

# Shapes in a picture; at the least radius of 3 % two pixels in a hundred are still bare then
MOST = 400
SMALL = 0.1  # shapes of up to this radius, in sides, are drawn in a window of their own


@dataclass(frozen=True)
class Leaves:
    """Circles, squares, triangles and quadrilaterals in uniform colours, radii with density r⁻³,
    until the canvas is covered.

    What 400 of them leave bare is one leaf behind all others.
    """

    smallest: float = 0.03
    """Least radius, as a part of the side; the largest is the side itself."""
    cover: float = 1.0
    """Part of the canvas to cover; the rest stays black. Little of it suits teachers of figures on
    a ground.
    """

    def draw(
        self, random: Random, count: int, channels: int, size: int
    ) -> Tensor:  # (count, C, H, W) in [0, 1]
        # From front to back: a shape shows where nothing lies over it, so a picture is finished
        # once it is covered. Beside its colours, a canvas keeps how much of each pixel is still
        # bare.
        canvas = torch.zeros(count * size**2, channels + 1, device=random.device)
        canvas[:, -1] = 1
        left = torch.arange(count, device=random.device)
        for number in range(MOST):
            shapes = _shapes(random, len(left), self.smallest, size)
            paints = torch.cat(
                [random.uniform(len(left), 1, channels), canvas.new_full((len(left), 1, 1), -1)], 2
            )
            for some, rows, columns in _windows(shapes, size):
                places = (rows[:, :, None] * size + columns[:, None]).flatten(1)
                flat = (left[some, None] * size**2 + places).flatten()
                under = canvas.index_select(0, flat).view(*places.shape, channels + 1)
                mask = _covered(shapes[some], rows, columns)[:, :, None] * under[:, :, -1:]
                canvas.index_copy_(0, flat, under.addcmul_(mask, paints[some]).flatten(0, 1))
            if number % 16 == 15 or self.cover < 1:
                bare = canvas[:, -1].view(count, -1)[left].mean(1)
                left = left[
                    bare > 1 - min(self.cover, 0.99)
                ]  # the last per cent would take many more shapes
                if not len(left):
                    break
        images, bare = canvas.view(count, -1, channels + 1).split((channels, 1), 2)
        if self.cover == 1:
            images = images + bare * random.uniform(count, 1, channels)
        return images.clamp(0, 1).transpose(1, 2).reshape(count, channels, size, size)


def _shapes(random: Random, count: int, smallest: float, size: int) -> Tensor:  # (count, 16)
    """Random shapes: is it a circle, centre, radius, and of four sides the directions they face
    (cosines, sines) and distances.
    """
    radius = (
        size * (smallest**-2 - random.uniform(count, 1) * (smallest**-2 - 1)).rsqrt()
    )  # r⁻³, by inversion
    kind = random.integers(0, 3, count, 1)  # circle, square, triangle, quadrilateral
    even = torch.arange(4, device=random.device) / 4
    thirds = torch.tensor(
        [0, 1 / 3, 2 / 3, 2 / 3], device=random.device
    )  # the fourth corner falls on the third
    free = random.uniform(count, 4).sort(1).values
    corners = torch.where(kind == 1, even, torch.where(kind == 2, thirds, free)) + random.uniform(
        count, 1
    )
    spans = torch.cat([corners[:, 1:], corners[:, :1] + 1], 1) - corners
    facing = (corners + spans / 2) * 2 * math.pi
    # Corners lie on the circle of that radius; a side of no span is none.
    far = torch.where(spans > 0, radius * (spans * math.pi).cos(), torch.inf)
    return torch.cat(
        [kind == 0, size * random.uniform(count, 2), radius, facing.cos(), facing.sin(), far], 1
    )


def _windows(shapes: Tensor, size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Which shapes are drawn together, and the rows and columns of the pixels each has to look
    at.
    """
    everyone, whole = (
        torch.arange(len(shapes), device=shapes.device),
        torch.arange(size, device=shapes.device),
    )
    if shapes.device.type != "cpu":  # telling small from large would wait for the device
        return [(everyone, *whole.expand(2, len(shapes), size))]
    small = shapes[:, 3] <= SMALL * size
    side = min(math.ceil(2 * SMALL * size) + 2, size)
    corner = (shapes[small, 1:3] - side / 2).round().long().clamp(0, size - side)
    steps = torch.arange(side)
    some, others = everyone[small], everyone[~small]
    return [
        (some, corner[:, 1:] + steps, corner[:, :1] + steps),
        (others, *whole.expand(2, len(others), size)),
    ]


def _covered(
    shapes: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:  # (n, 16), (n, h), (n, w) -> (n, h·w)
    """How much of each pixel the shape covers."""
    circle, x, y, radius, *sides = (part[:, :, None] for part in shapes.split(1, 1))
    across, down = (columns[:, None] + 0.5) - x, (rows[:, :, None] + 0.5) - y
    distance = across * sides[0] + down * sides[4] - sides[8]
    for side in range(1, 4):
        distance = torch.maximum(
            distance, across * sides[side] + down * sides[side + 4] - sides[side + 8]
        )
    distance = torch.where(circle > 0, (across.square() + down.square()).sqrt() - radius, distance)
    return (0.5 - distance).clamp(0, 1).flatten(1)
