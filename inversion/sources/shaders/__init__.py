"""Shaders: a large family of procedural pictures, each a random composition of parts.

    symmetry of the plane → warp → two fields, joined → tone → palette

A program is one choice of each; its numbers (frequencies, places, colours …) are drawn anew for
every picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inversion.sources.random import Random
from inversion.sources.shaders.changes import SYMMETRIES, WARPS
from inversion.sources.shaders.fields import FIELDS
from inversion.sources.shaders.joins import JOINS, Join
from inversion.sources.shaders.plane import Change, Field, camera
from inversion.sources.shaders.shades import PALETTES, TONES, Palette, Tone

TOGETHER = 16
"""Pictures that share a program; they differ in all its numbers."""


@dataclass(frozen=True)
class Program:
    """What is computed, one function a part."""

    symmetry: Change
    warp: Change
    first: Field
    second: Field
    join: Join
    tone: Tone
    palette: Palette

    def paint(
        self, random: Random, count: int, channels: int, height: int, width: int
    ) -> Tensor:  # (count, C, H, W) in [0, 1]
        """`count` pictures."""
        plane = camera(random, count, height, width)
        plane = self.symmetry(random, plane)
        plane = self.warp(random, plane)
        value = self.join(random, self.first, self.second, plane)
        shade = self.tone(random, value)
        return self.palette(random, shade, channels).clamp(0, 1)


@dataclass(frozen=True)
class Shaders:
    """Random compositions of symmetry, warp, two fields, tone and palette, each with new numbers in
    every picture.
    """

    def draw(
        self, random: Random, count: int, channels: int, height: int, width: int
    ) -> Tensor:  # (count, C, H, W) in [0, 1]
        """Groups of pictures, each by a program of its own."""
        groups = []
        for first in range(0, count, TOGETHER):
            program = random_program(random)
            together = min(TOGETHER, count - first)
            groups.append(program.paint(random, together, channels, height, width))
        return torch.cat(groups)


def random_program(random: Random) -> Program:
    """One of all programs, each part as likely as any other of its kind."""
    return Program(
        symmetry=random.choice(SYMMETRIES),
        warp=random.choice(WARPS),
        first=random.choice(FIELDS),
        second=random.choice(FIELDS),
        join=random.choice(JOINS),
        tone=random.choice(TONES),
        palette=random.choice(PALETTES),
    )


def programs_count() -> int:
    """How many different programs there are: the join `one` leaves the second field out."""
    values = len(FIELDS) * (1 + (len(JOINS) - 1) * len(FIELDS))
    return values * math.prod(map(len, (SYMMETRIES, WARPS, TONES, PALETTES)))
