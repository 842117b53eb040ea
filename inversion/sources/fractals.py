"""Fractals: attractors of random affine maps, drawn by the chaos game (as for pre-training in
Kataoka et al. 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inversion.sources.random import Random

MAPS, WALKERS, STEPS, SETTLING = 6, 96, 48, 12


@dataclass(frozen=True)
class Fractals:
    """The attractor of two to six contractions in one colour, brighter where it is met more often,
    on black or another colour.
    """

    def draw(
        self, random: Random, count: int, channels: int, size: int
    ) -> Tensor:  # (count, C, H, W) in [0, 1]
        # A map is rotation · diag(singular values) · rotation; values below 1 make it a
        # contraction.
        turn = random.uniform(2, count, MAPS, high=2 * math.pi)
        long = random.uniform(count, MAPS, low=0.3, high=0.9)
        short = (
            long
            * random.uniform(count, MAPS, low=0.2)
            * random.uniform(count, MAPS).sub(0.3).sign()
        )
        (c, d), (s, t) = turn.cos(), turn.sin()
        matrix = torch.stack([c * d * long - s * t * short, -c * t * long - s * d * short])
        matrix = torch.stack(
            [matrix, torch.stack([s * d * long + c * t * short, -s * t * long + c * d * short])]
        )
        offset = random.uniform(2, count, MAPS, low=-1.0)
        # The larger a map's image, the more often it is applied.
        chances = (long * short).abs() + 0.05
        chances = chances * (
            torch.arange(MAPS, device=chances.device) < random.integers(2, MAPS, count, 1)
        )
        limits = chances.cumsum(1) / chances.sum(1, keepdim=True)

        point, met = torch.zeros(2, count, WALKERS, device=random.device), []
        for step in range(STEPS + SETTLING):
            which = torch.searchsorted(limits, random.uniform(count, WALKERS)).clamp_max(MAPS - 1)
            m = matrix.gather(3, which.expand(2, 2, -1, -1))
            moved = offset.gather(2, which.expand(2, -1, -1))
            point = m[:, 0] * point[0] + m[:, 1] * point[1] + moved
            if step >= SETTLING:
                met.append(point)
        points = torch.cat(met, 2)
        low, high = points.amin(2, keepdim=True), points.amax(2, keepdim=True)
        centred = (points - (low + high) / 2) / (high - low).amax(0).clamp_min(1e-6)
        place = ((centred + 0.5) * (size - 1)).round().long()
        density = torch.zeros(count, size * size, device=random.device)
        density.scatter_add_(1, place[1] * size + place[0], torch.ones_like(points[0]))
        shade = (density.log1p() / density.amax(1, keepdim=True).log1p()).view(count, 1, size, size)
        shade = shade ** random.uniform(count, 1, 1, 1, low=0.3)
        figure, ground = random.uniform(2, count, channels, 1, 1)
        ground = ground * (random.uniform(count, 1, 1, 1) < 0.5)
        return torch.lerp(ground, figure, shade)
