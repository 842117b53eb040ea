"""Shaders: a large family of procedural pictures, each a random composition of parts.

    symmetry of the plane → warp → two fields, joined → tone → palette

A program is one choice of each; its numbers (frequencies, places, colours …) are drawn anew for
every picture. Fields take coordinates x, y (B, H, W), the picture being the square from −1 to 1,
and give values of about −1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from inversion.sources.random import Random

TOGETHER = 16
"""Pictures that share a program; they differ in all its numbers."""

Plane = tuple[Tensor, Tensor]  # x and y, (B, H, W) each
Field = Callable[[Random, Plane], Tensor]


@dataclass(frozen=True)
class Program:
    """What is computed, one function a part."""

    symmetry: Callable[[Random, Plane], Plane]
    warp: Callable[[Random, Plane], Plane]
    first: Field
    second: Field
    join: Callable[[Random, Field, Field, Plane], Tensor]
    tone: Callable[[Random, Tensor], Tensor]
    palette: Callable[[Random, Tensor, int], Tensor]

    def paint(
        self, random: Random, count: int, channels: int, size: int
    ) -> Tensor:  # (count, C, H, W) in [0, 1]
        """`count` pictures."""
        plane = self.warp(random, self.symmetry(random, _camera(random, count, size)))
        shade = self.tone(random, self.join(random, self.first, self.second, plane))
        return self.palette(random, shade, channels).clamp(0, 1)


@dataclass(frozen=True)
class Shaders:
    """Procedural pictures by random programs."""

    def draw(
        self, random: Random, count: int, channels: int, size: int
    ) -> Tensor:  # (count, C, H, W) in [0, 1]
        groups = [min(TOGETHER, count - first) for first in range(0, count, TOGETHER)]
        return torch.cat(
            [random_program(random).paint(random, some, channels, size) for some in groups]
        )


def random_program(random: Random) -> Program:
    """One of all programs, each part as likely as any other of its kind."""
    parts = (SYMMETRIES, WARPS, FIELDS, FIELDS, JOINS, TONES, PALETTES)
    return Program(*(random.choice(part) for part in parts))


def programs_count() -> int:
    """How many different programs there are."""
    pictures = len(FIELDS) * (
        1 + (len(JOINS) - 1) * len(FIELDS)
    )  # `one` leaves the second field out
    return pictures * math.prod(map(len, (SYMMETRIES, WARPS, TONES, PALETTES)))


def _camera(random: Random, count: int, size: int) -> Plane:
    """The square from −1 to 1, turned, shifted and zoomed at random."""
    steps = torch.linspace(-1 + 1 / size, 1 - 1 / size, size, device=random.device)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    angle, zoom = _number(random, count, 0, 2 * math.pi), _number(random, count, 0.6, 1.6)
    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    right, down = _number(random, count, -0.4, 0.4), _number(random, count, -0.4, 0.4)
    return x * cosine - y * sine + right, x * sine + y * cosine + down


def _number(random: Random, count: int, low: float, high: float) -> Tensor:  # (B, 1, 1)
    return random.uniform(count, 1, 1, low=low, high=high)


def _like(random: Random, plane: Plane, low: float, high: float) -> Tensor:  # (B, 1, 1)
    return _number(random, len(plane[0]), low, high)


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
    radius, angle = torch.hypot(*plane), torch.atan2(plane[1], plane[0])
    sector = math.pi / random.integers(3, 8, len(radius), 1, 1)
    folded = (torch.remainder(angle, 2 * sector) - sector).abs()
    return radius * folded.cos(), radius * folded.sin()


def polar(random: Random, plane: Plane) -> Plane:
    """Radius and angle become the coordinates."""
    angle = torch.atan2(plane[1], plane[0]) / math.pi
    return torch.hypot(*plane) * 2 - 1, angle * random.integers(1, 4, len(angle), 1, 1)


def tiles(random: Random, plane: Plane) -> Plane:
    """The same square again and again."""
    side = _like(random, plane, 0.5, 1.2)
    return tuple(torch.remainder(part, 2 * side) - side for part in plane)


def inversion(random: Random, plane: Plane) -> Plane:
    """Inside out, at a circle."""
    scale = 0.5 / (plane[0].square() + plane[1].square() + 0.1)
    return plane[0] * scale, plane[1] * scale


# Warps: small changes of where each point looks.


def ripple(random: Random, plane: Plane) -> Plane:
    """Wavy, both ways."""
    x, y = plane
    size, frequency, start = (
        _like(random, plane, 0.05, 0.4),
        _like(random, plane, 2, 8),
        _like(random, plane, 0, 6),
    )
    return x + size * (frequency * y + start).sin(), y + size * (frequency * x - start).sin()


def swirl(random: Random, plane: Plane) -> Plane:
    """Turned, the more the nearer to the middle."""
    x, y = plane
    angle = _like(random, plane, -5, 5) * (-2 * (x.square() + y.square())).exp()
    return x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()


def drift(random: Random, plane: Plane) -> Plane:
    """Carried along by two smooth noises."""
    size = _like(random, plane, 0.1, 0.8)
    return plane[0] + size * clouds(random, plane), plane[1] + size * clouds(random, plane)


def bulge(random: Random, plane: Plane) -> Plane:
    """Blown up or drawn in around the middle."""
    power = _like(random, plane, -0.7, 0.7)
    scale = torch.hypot(*plane).clamp_min(0.05) ** power
    return plane[0] * scale, plane[1] * scale


def mosaic(random: Random, plane: Plane) -> Plane:
    """Squares that each look at one point."""
    side = _like(random, plane, 0.08, 0.35)
    return tuple(((part / side).floor() + 0.5) * side for part in plane)


# Fields.


def waves(random: Random, plane: Plane) -> Tensor:
    """Parallel waves."""
    angle, frequency = _like(random, plane, 0, 2 * math.pi), _like(random, plane, 2, 14)
    return (
        frequency * (plane[0] * angle.cos() + plane[1] * angle.sin()) + _like(random, plane, 0, 6)
    ).sin()


def slope(random: Random, plane: Plane) -> Tensor:
    """A plane, tilted."""
    angle = _like(random, plane, 0, 2 * math.pi)
    return plane[0] * angle.cos() + plane[1] * angle.sin()


def rings(random: Random, plane: Plane) -> Tensor:
    """Waves around the middle."""
    return (_like(random, plane, 3, 16) * torch.hypot(*plane) + _like(random, plane, 0, 6)).sin()


def spiral(random: Random, plane: Plane) -> Tensor:
    """Waves that wind around the middle."""
    radius, angle = torch.hypot(*plane), torch.atan2(plane[1], plane[0])
    arms = random.integers(1, 5, len(angle), 1, 1)
    return (_like(random, plane, -8, 8) * radius.clamp_min(0.02).log() + arms * angle).sin()


def checks(random: Random, plane: Plane) -> Tensor:
    """A chessboard, its edges soft."""
    frequency = _like(random, plane, 2, 9)
    return (4 * (frequency * plane[0]).sin() * (frequency * plane[1]).sin()).tanh()


def plasma(random: Random, plane: Plane) -> Tensor:
    """Three waves on one another."""
    return (waves(random, plane) + waves(random, plane) + rings(random, plane)) / 2


def clouds(random: Random, plane: Plane) -> Tensor:
    """Smooth noise: random values on a grid of 4 to 8 cells, blended, repeating itself mirrored."""
    values = random.uniform(len(plane[0]), 1, 8, 8, low=-1.0)
    scale = _like(random, plane, 0.4, 1.0)
    grid = torch.stack([_fold(part * scale) for part in plane], 3)
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=True)[
        :, 0
    ]


def _fold(x: Tensor) -> Tensor:
    """Back and forth between −1 and 1."""
    return 1 - (torch.remainder(x + 1, 4) - 2).abs()


def turbulence(random: Random, plane: Plane) -> Tensor:
    """Noise at three scales, the finer the weaker."""
    return sum(0.5**k * clouds(random, (plane[0] * 2**k, plane[1] * 2**k)) for k in range(3)) / 1.2


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
    first = second = torch.full_like(plane[0], torch.inf)
    for x, y in random.uniform(count, 2, len(plane[0]), 1, 1, low=-1.3, high=1.3):
        distance = (plane[0] - x).square() + (plane[1] - y).square()
        first, second = (
            torch.minimum(first, distance),
            torch.minimum(second, torch.maximum(first, distance)),
        )
    return first.sqrt(), second.sqrt()


def blobs(random: Random, plane: Plane) -> Tensor:
    """Balls that melt into one another."""
    value = torch.full_like(plane[0], -1)
    for x, y in random.uniform(6, 2, len(value), 1, 1, low=-0.9, high=0.9):
        far = (plane[0] - x).square() + (plane[1] - y).square()
        value += 2 * (-far / _like(random, plane, 0.05, 0.5).square()).exp()
    return value


def polygon(random: Random, plane: Plane) -> Tensor:
    """A regular polygon, or a star where its sides are drawn in: positive inside."""
    x, y = plane[0] - _like(random, plane, -0.4, 0.4), plane[1] - _like(random, plane, -0.4, 0.4)
    sides = random.integers(3, 7, len(x), 1, 1)
    angle = (
        torch.remainder(torch.atan2(y, x) + _like(random, plane, 0, 6), 2 * math.pi / sides)
        - math.pi / sides
    )
    edge = angle.abs().mul(_like(random, plane, 0, 1.5)).cos()
    return 3 * (_like(random, plane, 0.2, 0.8) - torch.hypot(x, y) * edge)


def hoop(random: Random, plane: Plane) -> Tensor:
    """An ellipse's outline: positive on it."""
    x, y = plane[0] - _like(random, plane, -0.3, 0.3), plane[1] - _like(random, plane, -0.3, 0.3)
    radius = torch.hypot(x / _like(random, plane, 0.2, 0.8), y / _like(random, plane, 0.2, 0.8))
    return 1 - _like(random, plane, 3, 8) * (radius - 1).abs()


def strokes(random: Random, plane: Plane) -> Tensor:
    """One to four straight strokes: positive on them."""
    count = len(plane[0])
    nearest = torch.full_like(plane[0], torch.inf)
    for number, (x, y, end_x, end_y) in enumerate(
        random.uniform(4, 4, count, 1, 1, low=-0.9, high=0.9)
    ):
        right, down = end_x - x, end_y - y
        along = ((plane[0] - x) * right + (plane[1] - y) * down) / (
            right.square() + down.square()
        ).clamp_min(1e-3)
        along = along.clamp(0, 1)
        distance = (plane[0] - x - along * right).square() + (plane[1] - y - along * down).square()
        unused = number > random.integers(0, 3, count, 1, 1) if number else False
        nearest = torch.minimum(nearest, distance + 99 * unused)
    return 1 - _like(random, plane, 4, 12) * nearest.sqrt()


def scribble(random: Random, plane: Plane) -> Tensor:
    """A closed or open curve of random harmonics: positive on it."""
    count, points = len(plane[0]), 32
    time = (
        torch.arange(points, device=random.device)
        / points
        * _like(random, plane, 2, 2 * math.pi)[:, :, 0]
    )
    curve = torch.zeros(2, count, points, device=random.device)
    for harmonic in (1, 2, 3):
        size = random.uniform(2, count, 1, low=-1.0) / harmonic
        curve += 0.8 * size * (harmonic * time + random.uniform(2, count, 1, high=6.3)).sin()
    curve = curve - curve.mean(2, keepdim=True) * (random.uniform(count, 1) < 0.7)
    # |p − c|² by its parts, so that nothing of size (B, points, H, W) but one product is made.
    pixels = torch.stack([part.flatten(1) for part in plane], 2)
    distance = torch.cdist(pixels, curve.permute(1, 2, 0)).amin(2).view_as(plane[0])
    return 1 - _like(random, plane, 4, 12) * distance


def julia(random: Random, plane: Plane) -> Tensor:
    """How soon z ← z² + c escapes."""
    angle, far = _like(random, plane, 0, 2 * math.pi), _like(random, plane, 0.6, 0.85)
    a, b = far * angle.cos(), far * angle.sin()
    x, y = (1.3 * part for part in plane)
    escaped = torch.zeros_like(x)
    for _ in range(10):
        x, y = (x * x - y * y + a).clamp(-9, 9), (2 * x * y + b).clamp(-9, 9)
        escaped += (x * x + y * y < 4).float()
    return escaped / 5 - 1


# Joins of two fields.


def one(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """The first alone."""
    return first(random, plane)


def total(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """The first, and more or less of the second."""
    return first(random, plane) + _like(random, plane, -1, 1) * second(random, plane)


def product(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """Each dims the other, or turns it over."""
    return first(random, plane) * second(random, plane)


def larger(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """Whichever is larger."""
    return torch.maximum(first(random, plane), second(random, plane))


def smaller(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """Whichever is smaller."""
    return torch.minimum(first(random, plane), second(random, plane))


def stencil(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """The first where the second is positive, and nothing elsewhere."""
    inside = (8 * second(random, plane)).sigmoid()
    return inside * (first(random, plane) + 1) - 1


def bent(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """The first, seen through the second as through uneven glass."""
    shift = _like(random, plane, 0.1, 0.6) * second(random, plane).clamp(-2, 2)
    return first(random, (plane[0] + shift, plane[1] - shift))


# Tones: values to shades, 0 to 1.


def soft(random: Random, value: Tensor) -> Tensor:
    """As it is."""
    return 0.5 + 0.5 * value


def cut(random: Random, value: Tensor) -> Tensor:
    """Dark below a threshold and bright above it, with an edge more or less sharp."""
    count = len(value)
    return (_number(random, count, 4, 20) * (value - _number(random, count, -0.2, 0.7))).sigmoid()


def bands(random: Random, value: Tensor) -> Tensor:
    """Up and down with the value."""
    return 0.5 + 0.5 * (_number(random, len(value), 2, 9) * value).sin()


def steps(random: Random, value: Tensor) -> Tensor:
    """Three to six flat shades."""
    levels = random.integers(2, 5, len(value), 1, 1)
    return ((0.5 + 0.5 * value).clamp(0, 1) * levels).round() / levels


def contours(random: Random, value: Tensor) -> Tensor:
    """Thin bright lines along equal values."""
    scale = _number(random, len(value), 0.5, 2.5)
    return (-((torch.remainder(value * scale, 1) - 0.5) / 0.15).square()).exp()


def glow(random: Random, value: Tensor) -> Tensor:
    """Dark but for the highest values."""
    return (0.5 + 0.5 * value).clamp(0, 1) ** _number(random, len(value), 2, 6)


# Palettes: shades to colours. In one channel, a colour is a grey.


def gradient(random: Random, shade: Tensor, channels: int) -> Tensor:
    """From one colour to another."""
    low, high = random.uniform(2, len(shade), channels, 1, 1)
    return torch.lerp(low, high, shade[:, None])


def stretched(random: Random, shade: Tensor, channels: int) -> Tensor:
    """From a dark colour to a bright one, all of the range used."""
    low, high = shade.amin((1, 2), keepdim=True), shade.amax((1, 2), keepdim=True)
    shade = ((shade - low) / (high - low).clamp_min(1e-3))[:, None]
    dark, bright = (
        0.3 * random.uniform(len(shade), channels, 1, 1),
        0.5 + 0.5 * random.uniform(len(shade), channels, 1, 1),
    )
    return torch.lerp(dark, bright, shade)


def ink(random: Random, shade: Tensor, channels: int) -> Tensor:
    """One colour on black."""
    return shade[:, None] * random.uniform(len(shade), channels, 1, 1, low=0.4)


def paper(random: Random, shade: Tensor, channels: int) -> Tensor:
    """One colour on white."""
    return 1 - shade[:, None] * random.uniform(len(shade), channels, 1, 1, low=0.4)


def rainbow(random: Random, shade: Tensor, channels: int) -> Tensor:
    """Each channel goes up and down at its own pace."""
    pace, start = (
        random.uniform(len(shade), channels, 1, 1, low=0.5, high=2.5),
        random.uniform(len(shade), channels, 1, 1),
    )
    return 0.5 + 0.5 * (2 * math.pi * (pace * shade[:, None] + start)).cos()


def stops(random: Random, shade: Tensor, channels: int) -> Tensor:
    """Four colours one after another."""
    colours = random.uniform(4, len(shade), channels, 1, 1)
    place = (shade[:, None].clamp(0, 1) * 3).clamp_max(2.999)
    return sum(colour * (1 - (place - k).abs()).clamp_min(0) for k, colour in enumerate(colours))


SYMMETRIES = (as_it_is, mirror, quarters, kaleidoscope, polar, tiles, inversion)
WARPS = (as_it_is, ripple, swirl, drift, bulge, mosaic)
FIELDS = (
    *(waves, slope, rings, spiral, checks, plasma, clouds, turbulence, ridges),
    *(cells, cracks, blobs, polygon, hoop, strokes, scribble, julia),
)
JOINS = (one, total, product, larger, smaller, stencil, bent)
TONES = (soft, cut, bands, steps, contours, glow)
PALETTES = (gradient, stretched, ink, paper, rainbow, stops)
