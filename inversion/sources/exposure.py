"""Exposure: a figure on black made of any picture, by cutting its darker part away and, often, all
outside a frame.

Teachers of figures on a ground, such as digits, call whole canvases one class; exposed ones they
tell apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inversion.sources.random import Random

MOST = 0.95
"""Largest part of a picture's pixels that becomes black."""


def expose(images: Tensor, random: Random, share: float) -> Tensor:  # (B, C, H, W) uint8
    """`share` of the pictures exposed, every second of these in a frame."""
    count = len(images)
    pixels = images.float() / 255
    is_framed = random.uniform(count, 1, 1, 1) < 0.5
    framed = pixels * _frame(random, count, *images.shape[2:])[:, None]
    pixels = torch.where(is_framed, framed, pixels)
    brightness = pixels.mean(1).flatten(1).sort(1).values
    black = (random.uniform(count, 1, high=MOST) * brightness.shape[1]).long()
    low = brightness.gather(1, black)[:, :, None, None]
    high = pixels.amax((1, 2, 3), keepdim=True)
    pixels = ((pixels - low) / (high - low).clamp_min(0.05)).clamp(0, 1)
    chosen = random.uniform(count, 1, 1, 1) < share
    return torch.where(chosen, (pixels * 255).round().to(torch.uint8), images)


def _frame(random: Random, count: int, height: int, width: int) -> Tensor:  # (count, H, W)
    """1 in an ellipse anywhere and 0 outside, with a soft edge."""
    x = torch.linspace(-1, 1, width, device=random.device)
    y = torch.linspace(-1, 1, height, device=random.device)[:, None]
    x = x - random.uniform(count, 1, 1, low=-0.4, high=0.4)
    y = y - random.uniform(count, 1, 1, low=-0.4, high=0.4)
    angle = random.uniform(count, 1, 1, high=math.pi)
    along = x * angle.cos() + y * angle.sin()
    across = y * angle.cos() - x * angle.sin()
    radius = random.uniform(count, 1, 1, low=0.3, high=0.9)
    ratio = random.uniform(count, 1, 1, low=0.3, high=1.1)
    return (8 * (radius - torch.hypot(along, across / ratio))).sigmoid()
