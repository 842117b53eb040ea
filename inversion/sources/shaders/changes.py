"""Changes of the plane, before anything is painted on it."""

from __future__ import annotations

import math

import torch

from inversion.sources.random import Random
from inversion.sources.shaders.fields import clouds
from inversion.sources.shaders.plane import Change, Plane, draw_like

# Symmetries: the plane folded onto a part of itself.


def as_it_is(random: Random, plane: Plane) -> Plane:
    """No change."""
    return plane


def mirror(random: Random, plane: Plane) -> Plane:
    """Left and right alike."""
    return plane[0].abs(), plane[1]


def quarters(random: Random, plane: Plane) -> Plane:
    """Left and right alike, above and below too."""
    return plane[0].abs(), plane[1].abs()


def kaleidoscope(random: Random, plane: Plane) -> Plane:
    """k equal sectors, each the mirror image of the next."""
    radius = torch.hypot(*plane)
    angle = torch.atan2(plane[1], plane[0])
    sector = math.pi / random.integers(3, 8, len(radius), 1, 1)
    folded = (torch.remainder(angle, 2 * sector) - sector).abs()
    return radius * folded.cos(), radius * folded.sin()


def polar(random: Random, plane: Plane) -> Plane:
    """Radius and angle become the coordinates."""
    angle = torch.atan2(plane[1], plane[0]) / math.pi
    return torch.hypot(*plane) * 2 - 1, angle * random.integers(1, 4, len(angle), 1, 1)


def tiles(random: Random, plane: Plane) -> Plane:
    """The same square again and again."""
    x, y = plane
    side = draw_like(random, plane, 0.5, 1.2)
    return torch.remainder(x, 2 * side) - side, torch.remainder(y, 2 * side) - side


def inversion(random: Random, plane: Plane) -> Plane:
    """Inside out, at a circle."""
    scale = 0.5 / (plane[0].square() + plane[1].square() + 0.1)
    return plane[0] * scale, plane[1] * scale


# Warps: small changes of where each point looks.


def ripple(random: Random, plane: Plane) -> Plane:
    """Wavy, both ways."""
    x, y = plane
    size = draw_like(random, plane, 0.05, 0.4)
    frequency = draw_like(random, plane, 2, 8)
    start = draw_like(random, plane, 0, 6)
    return x + size * (frequency * y + start).sin(), y + size * (frequency * x - start).sin()


def swirl(random: Random, plane: Plane) -> Plane:
    """Turned, the more the nearer to the middle."""
    x, y = plane
    angle = draw_like(random, plane, -5, 5) * (-2 * (x.square() + y.square())).exp()
    return x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()


def drift(random: Random, plane: Plane) -> Plane:
    """Carried along by two smooth noises."""
    x, y = plane
    size = draw_like(random, plane, 0.1, 0.8)
    right = x + size * clouds(random, plane)
    down = y + size * clouds(random, plane)
    return right, down


def bulge(random: Random, plane: Plane) -> Plane:
    """Blown up or drawn in around the middle."""
    power = draw_like(random, plane, -0.7, 0.7)
    scale = torch.hypot(*plane).clamp_min(0.05) ** power
    return plane[0] * scale, plane[1] * scale


def mosaic(random: Random, plane: Plane) -> Plane:
    """Squares that each look at one point."""
    x, y = plane
    side = draw_like(random, plane, 0.08, 0.35)
    return ((x / side).floor() + 0.5) * side, ((y / side).floor() + 0.5) * side


SYMMETRIES: tuple[Change, ...] = (
    as_it_is,
    mirror,
    quarters,
    kaleidoscope,
    polar,
    tiles,
    inversion,
)
WARPS: tuple[Change, ...] = (as_it_is, ripple, swirl, drift, bulge, mosaic)
