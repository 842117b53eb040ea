"""Strokes: a few smooth pen lines on a ground, as in handwriting and line drawings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inversion.sources.random import Random
from synthesis_kernels.errors import EchosetError

MOST = 4
"""Strokes in an image, at most; one at least."""
POINTS = 24
"""Places along a stroke where the pen is set down; close enough that the line has no gaps."""


@dataclass(frozen=True)
class Strokes:
    """One to four curved pen lines, brighter or darker than the plain ground behind them."""

    thinnest: float = 0.02
    """Least half width of a line, as a part of the shorter side."""
    thickest: float = 0.08
    """Largest half width of a line, as a part of the shorter side."""

    def __post_init__(self) -> None:
        if self.thinnest > self.thickest:
            raise EchosetError(
                f"strokes:thinnest must not be above thickest, got {self.thinnest} and "
                f"{self.thickest}"
            )

    def draw(self, random: Random, count: int, channels: int, height: int, width: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1]."""
        short = min(height, width)
        down = (torch.arange(height, device=random.device) + 0.5) / short
        across = (torch.arange(width, device=random.device) + 0.5) / short
        images = _ground(random, count, channels).expand(-1, -1, height, width)
        strokes = random.integers(1, MOST, count)
        for number in range(MOST):
            corners = random.uniform(count, 3, 2, low=0.1, high=0.9)
            points = _curve(corners)
            points[..., 0] *= width / short
            points[..., 1] *= height / short
            half_width = random.uniform(count, 1, 1, low=self.thinnest, high=self.thickest)
            colour = _ink(random, count, channels)
            distance = _distance(points, across, down)
            cover = ((half_width - distance) * short + 0.5).clamp(0, 1)
            cover = cover * (number < strokes)[:, None, None]
            images = torch.lerp(images, colour, cover[:, None])
        return images


def _ground(random: Random, count: int, channels: int) -> Tensor:  # (count, C, 1, 1)
    """Black for half of the images, any colour for the others."""
    colour = random.uniform(count, channels, 1, 1)
    plain = random.uniform(count, 1, 1, 1) < 0.5
    return torch.where(plain, 0.0, colour)


def _ink(random: Random, count: int, channels: int) -> Tensor:  # (count, C, 1, 1)
    """White for half of the strokes, any colour for the others."""
    colour = random.uniform(count, channels, 1, 1)
    plain = random.uniform(count, 1, 1, 1) < 0.5
    return torch.where(plain, 1.0, colour)


def _curve(corners: Tensor) -> Tensor:  # (count, 3, 2) -> (count, POINTS, 2)
    """A quadratic Bézier curve from the first corner to the third, drawn towards the second."""
    t = torch.linspace(0, 1, POINTS, device=corners.device)[:, None]
    first, middle, last = corners[:, None].unbind(2)
    return (1 - t) ** 2 * first + 2 * t * (1 - t) * middle + t**2 * last


def _distance(
    points: Tensor,  # (count, P, 2)
    x: Tensor,  # (W,)
    y: Tensor,  # (H,)
) -> Tensor:  # (count, H, W)
    """Each pixel's distance to the nearest point."""
    across = (x - points[..., 0, None]).square()
    down = (y - points[..., 1, None]).square()
    nearest = torch.full((), torch.inf, device=x.device)
    for number in range(points.shape[1]):
        square = down[:, number, :, None] + across[:, number, None, :]
        nearest = torch.minimum(nearest, square)
    return nearest.sqrt()
