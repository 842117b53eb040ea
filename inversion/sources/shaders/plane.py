"""The plane that shaders look at: coordinates x, y of a picture whose shorter side goes from −1 to
1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from inversion.sources.random import Random

Plane = tuple[Tensor, Tensor]
"""x and y, (B, H, W) each."""
Change = Callable[[Random, Plane], Plane]
"""Where each point looks instead."""
Field = Callable[[Random, Plane], Tensor]
"""Values of about −1 to 1 over the plane, (B, H, W)."""


def camera(random: Random, count: int, height: int, width: int) -> Plane:
    """The picture's plane, turned, shifted and zoomed at random."""
    short = min(height, width)
    down = _steps(random, height, short)
    across = _steps(random, width, short)
    y, x = torch.meshgrid(down, across, indexing="ij")
    angle = draw_number(random, count, 0, 2 * math.pi)
    zoom = draw_number(random, count, 0.6, 1.6)
    cosine = angle.cos() * zoom
    sine = angle.sin() * zoom
    right = draw_number(random, count, -0.4, 0.4)
    down = draw_number(random, count, -0.4, 0.4)
    return x * cosine - y * sine + right, x * sine + y * cosine + down


def _steps(random: Random, side: int, short: int) -> Tensor:  # (side,)
    """The middles of the pixels along one side."""
    end = side / short - 1 / short
    return torch.linspace(-end, end, side, device=random.device)


def draw_number(random: Random, count: int, low: float, high: float) -> Tensor:  # (B, 1, 1)
    """A number for each picture."""
    return random.uniform(count, 1, 1, low=low, high=high)


def draw_like(random: Random, plane: Plane, low: float, high: float) -> Tensor:  # (B, 1, 1)
    """A number for each picture of this plane."""
    return draw_number(random, len(plane[0]), low, high)
