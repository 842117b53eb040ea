"""Random numbers for procedural sources: a stream on the device, and one for choices that decide
what is computed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import sha256
from typing import TypeVar

import torch
from torch import Tensor

from synthesis_kernels.priority import draw

Item = TypeVar("Item")


class Random:
    """What a block is drawn with; it follows from the parts of its key alone."""

    def __init__(self, device: torch.device | str, *key: object) -> None:
        seed = int.from_bytes(sha256(repr(key).encode()).digest()[:7], "big")
        self.device = torch.device(device)
        self._numbers = torch.Generator(device).manual_seed(seed)
        self._choices = random.Random(seed)  # on the host: no choice waits for the device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high)."""
        return low + (high - low) * torch.rand(shape, generator=self._numbers, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self._numbers, device=self.device)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from low to high, both included."""
        return torch.randint(low, high + 1, shape, generator=self._numbers, device=self.device)

    def draw(self, chances: Tensor, count: int) -> Tensor:  # (N,) -> (count,)
        """Places drawn with these chances, with replacement."""
        return draw(chances, count, self._numbers)

    def choice(self, items: Sequence[Item]) -> Item:
        """One of them, the same for all images that are drawn together."""
        return self._choices.choice(items)
