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

    def draw(self, random: Random, count: int, channels: int, size: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1]."""
        return random.uniform(count, channels, size, size)


@dataclass(frozen=True)
class GaussianNoise:
    """Each pixel drawn alone around grey, cut at black and white."""

    deviation: float = 0.25
    """Standard deviation, white being 1."""

    def draw(self, random: Random, count: int, channels: int, size: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1]."""
        return (0.5 + self.deviation * random.normal(count, channels, size, size)).clamp(0, 1)


@dataclass(frozen=True)
class SmoothNoise:
    """Uniform noise on a coarse grid of 2 to 8 cells a side, enlarged smoothly, stretched to the
    full range.
    """

    def draw(self, random: Random, count: int, channels: int, size: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1]."""
        coarse = random.uniform(count, channels, 8, 8)
        cells = random.integers(2, 8, count)
        images = torch.empty(count, channels, size, size, device=coarse.device)
        for side in range(2, 9):
            fine = F.interpolate(
                coarse[:, :, :side, :side], (size, size), mode="bicubic", align_corners=False
            )
            chosen = (cells == side)[:, None, None, None]
            images = torch.where(chosen, fine, images)
        return _stretch(images)


@dataclass(frozen=True)
class PinkNoise:
    """Noise whose amplitude falls as frequency to the power of 0.5 to 2, as photographs' does,
    stretched to the full range.
    """

    def draw(self, random: Random, count: int, channels: int, size: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1]."""
        spectrum = torch.fft.rfft2(random.normal(count, channels, size, size))
        device = spectrum.device
        down = torch.fft.fftfreq(size, device=device)[:, None]
        across = torch.fft.rfftfreq(size, device=device)
        frequency = torch.hypot(down, across)
        slope = random.uniform(count, 1, 1, 1, low=0.5, high=2.0)
        frequency[0, 0] = torch.inf  # no mean: stretching would take it away again
        return _stretch(torch.fft.irfft2(spectrum * frequency**-slope, s=(size, size)))


def _stretch(images: Tensor) -> Tensor:
    """Each image's darkest value to 0, its brightest to 1."""
    low = images.amin((1, 2, 3), keepdim=True)
    high = images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-6)
