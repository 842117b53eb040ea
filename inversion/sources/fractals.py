"""Fractals: attractors of random affine maps, drawn by the chaos game (as for pre-training in
Kataoka et al. 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inversion.sources.random import Random

MAPS = 6
"""Maps of a fractal, at most; two at least."""
WALKERS = 96
"""Points that are moved at once."""
STEPS = 48
"""Places of each walker that are drawn."""
SETTLING = 12
"""Steps before that, until a walker is near the attractor."""


@dataclass(frozen=True)
class Fractals:
    """The attractor of two to six contractions in one colour, brighter where it is met more often,
    on black or another colour.
    """

    def draw(self, random: Random, count: int, channels: int, height: int, width: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1]."""
        points = _play(random, count)
        shade = _shade(points, height, width)
        shade = shade ** random.uniform(count, 1, 1, 1, low=0.3)
        figure, ground = random.uniform(2, count, channels, 1, 1)
        ground = ground * (random.uniform(count, 1, 1, 1) < 0.5)
        return torch.lerp(ground, figure, shade)


def _play(random: Random, count: int) -> Tensor:  # (2, count, STEPS · WALKERS)
    """The chaos game: each walker goes where a map, drawn anew at every step, takes it."""
    matrix, offset, limits = _maps(random, count)
    point = torch.zeros(2, count, WALKERS, device=random.device)
    met = []
    for step in range(STEPS + SETTLING):
        which = torch.searchsorted(limits, random.uniform(count, WALKERS)).clamp_max(MAPS - 1)
        chosen = matrix.gather(3, which.expand(2, 2, -1, -1))
        moved = offset.gather(2, which.expand(2, -1, -1))
        point = chosen[:, 0] * point[0] + chosen[:, 1] * point[1] + moved
        if step >= SETTLING:
            met.append(point)
    return torch.cat(met, 2)


def _maps(random: Random, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Affine maps: their matrices (2, 2, count, MAPS), their offsets (2, count, MAPS), and the
    chances (count, MAPS) of each or one before it.
    """
    # A map is rotation · diag(singular values) · rotation; values below 1 make it a contraction.
    turn = random.uniform(2, count, MAPS, high=2 * math.pi)
    long = random.uniform(count, MAPS, low=0.3, high=0.9)
    narrowness = random.uniform(count, MAPS, low=0.2)
    handedness = random.uniform(count, MAPS).sub(0.3).sign()
    short = long * narrowness * handedness
    c, d = turn.cos()
    s, t = turn.sin()
    upper = torch.stack([c * d * long - s * t * short, -c * t * long - s * d * short])
    lower = torch.stack([s * d * long + c * t * short, -s * t * long + c * d * short])
    matrix = torch.stack([upper, lower])
    offset = random.uniform(2, count, MAPS, low=-1.0)
    # The larger a map's image, the more often it is applied.
    chances = (long * short).abs() + 0.05
    used = torch.arange(MAPS, device=chances.device) < random.integers(2, MAPS, count, 1)
    chances = chances * used
    return matrix, offset, chances.cumsum(1) / chances.sum(1, keepdim=True)


def _shade(
    points: Tensor,  # (2, count, P)
    height: int,
    width: int,
) -> Tensor:  # (count, 1, H, W)
    """How often each pixel is met, by its logarithm; the attractor fills the side along which it is
    longer.
    """
    count = points.shape[1]
    low = points.amin(2, keepdim=True)
    high = points.amax(2, keepdim=True)
    centred = (points - (low + high) / 2) / (high - low).amax(0).clamp_min(1e-6)
    column = ((centred[0] + 0.5) * (width - 1)).round().long()
    row = ((centred[1] + 0.5) * (height - 1)).round().long()
    density = torch.zeros(count, height * width, device=points.device)
    density.scatter_add_(1, row * width + column, torch.ones_like(points[0]))
    shade = density.log1p() / density.amax(1, keepdim=True).log1p()
    return shade.view(count, 1, height, width)
