"""Fields: values over the plane, of which pictures are made."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from inversion.sources.random import Random
from inversion.sources.shaders.plane import Field, Plane, draw_like


def waves(random: Random, plane: Plane) -> Tensor:
    """Parallel waves."""
    angle = draw_like(random, plane, 0, 2 * math.pi)
    frequency = draw_like(random, plane, 2, 14)
    along = plane[0] * angle.cos() + plane[1] * angle.sin()
    return (frequency * along + draw_like(random, plane, 0, 6)).sin()


def slope(random: Random, plane: Plane) -> Tensor:
    """A plane, tilted."""
    angle = draw_like(random, plane, 0, 2 * math.pi)
    return plane[0] * angle.cos() + plane[1] * angle.sin()


def rings(random: Random, plane: Plane) -> Tensor:
    """Waves around the middle."""
    frequency = draw_like(random, plane, 3, 16)
    return (frequency * torch.hypot(*plane) + draw_like(random, plane, 0, 6)).sin()


def spiral(random: Random, plane: Plane) -> Tensor:
    """Waves that wind around the middle."""
    radius = torch.hypot(*plane)
    angle = torch.atan2(plane[1], plane[0])
    arms = random.integers(1, 5, len(angle), 1, 1)
    winding = draw_like(random, plane, -8, 8)
    return (winding * radius.clamp_min(0.02).log() + arms * angle).sin()


def checks(random: Random, plane: Plane) -> Tensor:
    """A chessboard, its edges soft."""
    frequency = draw_like(random, plane, 2, 9)
    return (4 * (frequency * plane[0]).sin() * (frequency * plane[1]).sin()).tanh()


def plasma(random: Random, plane: Plane) -> Tensor:
    """Three waves on one another."""
    return (waves(random, plane) + waves(random, plane) + rings(random, plane)) / 2


def clouds(random: Random, plane: Plane) -> Tensor:
    """Smooth noise: random values on a grid of 4 to 8 cells, blended, repeating itself mirrored."""
    values = random.uniform(len(plane[0]), 1, 8, 8, low=-1.0)
    scale = draw_like(random, plane, 0.4, 1.0)
    grid = torch.stack([_fold(part * scale) for part in plane], 3)
    blended = F.grid_sample(
        values, grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return blended[:, 0]


def _fold(x: Tensor) -> Tensor:
    """Back and forth between −1 and 1."""
    return 1 - (torch.remainder(x + 1, 4) - 2).abs()


def turbulence(random: Random, plane: Plane) -> Tensor:
    """Noise at three scales, the finer the weaker."""
    x, y = plane
    value = torch.zeros_like(x)
    for octave in range(3):
        value = value + 0.5**octave * clouds(random, (x * 2**octave, y * 2**octave))
    return value / 1.2


def ridges(random: Random, plane: Plane) -> Tensor:
    """Bright along the lines where turbulence changes its sign."""
    return 1 - 4 * turbulence(random, plane).abs()


def cells(random: Random, plane: Plane) -> Tensor:
    """Distance to the nearest of some random points (Worley noise)."""
    return 2 * _nearest(random, plane)[0] - 1


def cracks(random: Random, plane: Plane) -> Tensor:
    """Borders between the nearest points' cells."""
    first, second = _nearest(random, plane)
    return 4 * (second - first) - 1


def _nearest(random: Random, plane: Plane, count: int = 8) -> tuple[Tensor, Tensor]:
    """Distances to the nearest of some random points, and to the one after it."""
    first = torch.full_like(plane[0], torch.inf)
    second = first
    for x, y in random.uniform(count, 2, len(plane[0]), 1, 1, low=-1.3, high=1.3):
        distance = (plane[0] - x).square() + (plane[1] - y).square()
        second = torch.minimum(second, torch.maximum(first, distance))
        first = torch.minimum(first, distance)
    return first.sqrt(), second.sqrt()


def blobs(random: Random, plane: Plane) -> Tensor:
    """Balls that melt into one another."""
    value = torch.full_like(plane[0], -1)
    for x, y in random.uniform(6, 2, len(value), 1, 1, low=-0.9, high=0.9):
        far = (plane[0] - x).square() + (plane[1] - y).square()
        value += 2 * (-far / draw_like(random, plane, 0.05, 0.5).square()).exp()
    return value


def polygon(random: Random, plane: Plane) -> Tensor:
    """A regular polygon, or a star where its sides are drawn in: positive inside."""
    x = plane[0] - draw_like(random, plane, -0.4, 0.4)
    y = plane[1] - draw_like(random, plane, -0.4, 0.4)
    sides = random.integers(3, 7, len(x), 1, 1)
    turned = torch.atan2(y, x) + draw_like(random, plane, 0, 6)
    angle = torch.remainder(turned, 2 * math.pi / sides) - math.pi / sides
    edge = angle.abs().mul(draw_like(random, plane, 0, 1.5)).cos()
    return 3 * (draw_like(random, plane, 0.2, 0.8) - torch.hypot(x, y) * edge)


def hoop(random: Random, plane: Plane) -> Tensor:
    """An ellipse's outline: positive on it."""
    x = plane[0] - draw_like(random, plane, -0.3, 0.3)
    y = plane[1] - draw_like(random, plane, -0.3, 0.3)
    across = x / draw_like(random, plane, 0.2, 0.8)
    down = y / draw_like(random, plane, 0.2, 0.8)
    radius = torch.hypot(across, down)
    return 1 - draw_like(random, plane, 3, 8) * (radius - 1).abs()


def strokes(random: Random, plane: Plane) -> Tensor:
    """One to four straight strokes: positive on them."""
    count = len(plane[0])
    nearest = torch.full_like(plane[0], torch.inf)
    ends = random.uniform(4, 4, count, 1, 1, low=-0.9, high=0.9)
    for number, (x, y, end_x, end_y) in enumerate(ends):
        right = end_x - x
        down = end_y - y
        length = (right.square() + down.square()).clamp_min(1e-3)
        along = (((plane[0] - x) * right + (plane[1] - y) * down) / length).clamp(0, 1)
        distance = (plane[0] - x - along * right).square() + (plane[1] - y - along * down).square()
        if number:  # the first one is always there
            distance = distance + 99 * (number > random.integers(0, 3, count, 1, 1))
        nearest = torch.minimum(nearest, distance)
    return 1 - draw_like(random, plane, 4, 12) * nearest.sqrt()


def scribble(random: Random, plane: Plane) -> Tensor:
    """A closed or open curve of random harmonics: positive on it."""
    curve = _harmonics(random, plane)
    # |p − c|² by its parts, so that nothing of size (B, points, H, W) but one product is made.
    pixels = torch.stack([part.flatten(1) for part in plane], 2)
    distance = torch.cdist(pixels, curve.permute(1, 2, 0)).amin(2).view_as(plane[0])
    return 1 - draw_like(random, plane, 4, 12) * distance


def _harmonics(random: Random, plane: Plane, points: int = 32) -> Tensor:  # (2, B, points)
    """Points along a curve: three harmonics, most curves moved to the middle."""
    count = len(plane[0])
    steps = torch.arange(points, device=random.device) / points
    time = steps * draw_like(random, plane, 2, 2 * math.pi)[:, :, 0]
    curve = torch.zeros(2, count, points, device=random.device)
    for harmonic in (1, 2, 3):
        size = random.uniform(2, count, 1, low=-1.0) / harmonic
        curve += 0.8 * size * (harmonic * time + random.uniform(2, count, 1, high=6.3)).sin()
    return curve - curve.mean(2, keepdim=True) * (random.uniform(count, 1) < 0.7)


def julia(random: Random, plane: Plane) -> Tensor:
    """How soon z ← z² + c escapes."""
    angle = draw_like(random, plane, 0, 2 * math.pi)
    far = draw_like(random, plane, 0.6, 0.85)
    a = far * angle.cos()
    b = far * angle.sin()
    x, y = (1.3 * part for part in plane)
    escaped = torch.zeros_like(x)
    for _ in range(10):
        squared = (x * x - y * y + a).clamp(-9, 9)
        y = (2 * x * y + b).clamp(-9, 9)
        x = squared
        escaped += (x * x + y * y < 4).float()
    return escaped / 5 - 1


FIELDS: tuple[Field, ...] = (
    waves,
    slope,
    rings,
    spiral,
    checks,
    plasma,
    clouds,
    turbulence,
    ridges,
    cells,
    cracks,
    blobs,
    polygon,
    hoop,
    strokes,
    scribble,
    julia,
)
