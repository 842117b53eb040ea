"""From values to shades, and from shades to colours."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from inversion.sources.random import Random
from inversion.sources.shaders.plane import draw_number

Tone = Callable[[Random, Tensor], Tensor]
"""Values of about −1 to 1 to shades of 0 to 1, (B, H, W)."""
Palette = Callable[[Random, Tensor, int], Tensor]
"""Shades, (B, H, W), to colours, (B, C, H, W); in one channel, a colour is a grey."""

# Tones: values to shades, 0 to 1.


def soft(random: Random, value: Tensor) -> Tensor:
    """As it is."""
    return 0.5 + 0.5 * value


def cut(random: Random, value: Tensor) -> Tensor:
    """Dark below a threshold and bright above it, with an edge more or less sharp."""
    sharpness = draw_number(random, len(value), 4, 20)
    threshold = draw_number(random, len(value), -0.2, 0.7)
    return (sharpness * (value - threshold)).sigmoid()


def bands(random: Random, value: Tensor) -> Tensor:
    """Up and down with the value."""
    return 0.5 + 0.5 * (draw_number(random, len(value), 2, 9) * value).sin()


def steps(random: Random, value: Tensor) -> Tensor:
    """Three to six flat shades."""
    levels = random.integers(2, 5, len(value), 1, 1)
    return ((0.5 + 0.5 * value).clamp(0, 1) * levels).round() / levels


def contours(random: Random, value: Tensor) -> Tensor:
    """Thin bright lines along equal values."""
    scale = draw_number(random, len(value), 0.5, 2.5)
    return (-((torch.remainder(value * scale, 1) - 0.5) / 0.15).square()).exp()


def glow(random: Random, value: Tensor) -> Tensor:
    """Dark but for the highest values."""
    return (0.5 + 0.5 * value).clamp(0, 1) ** draw_number(random, len(value), 2, 6)


# Palettes: shades to colours.


def gradient(random: Random, shade: Tensor, channels: int) -> Tensor:
    """From one colour to another."""
    low, high = random.uniform(2, len(shade), channels, 1, 1)
    return torch.lerp(low, high, shade[:, None])


def stretched(random: Random, shade: Tensor, channels: int) -> Tensor:
    """From a dark colour to a bright one, all of the range used."""
    low = shade.amin((1, 2), keepdim=True)
    high = shade.amax((1, 2), keepdim=True)
    shade = ((shade - low) / (high - low).clamp_min(1e-3))[:, None]
    dark = 0.3 * random.uniform(len(shade), channels, 1, 1)
    bright = 0.5 + 0.5 * random.uniform(len(shade), channels, 1, 1)
    return torch.lerp(dark, bright, shade)


def ink(random: Random, shade: Tensor, channels: int) -> Tensor:
    """One colour on black."""
    return shade[:, None] * random.uniform(len(shade), channels, 1, 1, low=0.4)


def paper(random: Random, shade: Tensor, channels: int) -> Tensor:
    """One colour on white."""
    return 1 - shade[:, None] * random.uniform(len(shade), channels, 1, 1, low=0.4)


def rainbow(random: Random, shade: Tensor, channels: int) -> Tensor:
    """Each channel goes up and down at its own pace."""
    pace = random.uniform(len(shade), channels, 1, 1, low=0.5, high=2.5)
    start = random.uniform(len(shade), channels, 1, 1)
    return 0.5 + 0.5 * (2 * math.pi * (pace * shade[:, None] + start)).cos()


def stops(random: Random, shade: Tensor, channels: int) -> Tensor:
    """Four colours one after another."""
    colours = random.uniform(4, len(shade), channels, 1, 1)
    place = (shade[:, None].clamp(0, 1) * 3).clamp_max(2.999)
    mixture = torch.zeros_like(place)
    for number, colour in enumerate(colours):
        mixture = mixture + colour * (1 - (place - number).abs()).clamp_min(0)
    return mixture


TONES: tuple[Tone, ...] = (soft, cut, bands, steps, contours, glow)
PALETTES: tuple[Palette, ...] = (gradient, stretched, ink, paper, rainbow, stops)
