"""Noise of four kinds: the poorest source, and what any other should beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from inversion.sources.random import Random


@dataclass(frozen=True)
class UniformNoise:
    """Each pixel drawn alone, all values alike."""

    def draw(self, random: Random, count: int, channels: int, height: int, width: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1]."""
        return random.uniform(count, channels, height, width)


@dataclass(frozen=True)
class GaussianNoise:
    """Each pixel drawn alone around grey, cut at black and white."""

    deviation: float = 0.25
    """Standard deviation, white being 1."""

    def draw(self, random: Random, count: int, channels: int, height: int, width: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1]."""
        return (0.5 + self.deviation * random.normal(count, channels, height, width)).clamp(0, 1)


@dataclass(frozen=True)
class SmoothNoise:
    """Uniform noise on a coarse grid of 2 to 8 cells along the shorter side, enlarged smoothly,
    stretched to the full range.
    """

    def draw(self, random: Random, count: int, channels: int, height: int, width: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1]."""
        short = min(height, width)
        coarse = random.uniform(
            count, channels, round(8 * height / short), round(8 * width / short)
        )
        cells = random.integers(2, 8, count)
        images = torch.empty(count, channels, height, width, device=coarse.device)
        for cell in range(2, 9):
            grid = coarse[:, :, : round(cell * height / short), : round(cell * width / short)]
            fine = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
            chosen = (cells == cell)[:, None, None, None]
            images = torch.where(chosen, fine, images)
        return _stretch(images)


@dataclass(frozen=True)
class PinkNoise:
    """Noise whose amplitude falls as frequency to the power of 0.5 to 2, as photographs' does,
    stretched to the full range.
    """

    def draw(self, random: Random, count: int, channels: int, height: int, width: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1]."""
        spectrum = torch.fft.rfft2(random.normal(count, channels, height, width))
        device = spectrum.device
        down = torch.fft.fftfreq(height, device=device)[:, None]
        across = torch.fft.rfftfreq(width, device=device)
        frequency = torch.hypot(down, across)
        slope = random.uniform(count, 1, 1, 1, low=0.5, high=2.0)
        frequency[0, 0] = torch.inf  # no mean: stretching would take it away again
        return _stretch(torch.fft.irfft2(spectrum * frequency**-slope, s=(height, width)))


def _stretch(images: Tensor) -> Tensor:
    """Each image's darkest value to 0, its brightest to 1."""
    low = images.amin((1, 2, 3), keepdim=True)
    high = images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-6)
