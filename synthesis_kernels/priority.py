"""Proportional draws and their importance weights (prioritised replay, Schaul et al. 2016, eq. 1 and section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_chances(
    priority: Tensor,  # (N,)
    exponent: float,
    allowed: Tensor | None = None,  # (N,) bool
    floor: float = 1e-3,
) -> Tensor:  # (N,) sums to 1
    """P(i) = (|δ_i| + ε)^α / Σ (|δ| + ε)^α over the allowed samples; α = 0 is uniform."""
    weight = (priority.abs() + floor) ** exponent
    if allowed is not None:
        weight = weight * allowed
    return weight / weight.sum()


def draw(chances: Tensor, count: int, generator: torch.Generator) -> Tensor:  # (count,) int64
    """Draw indices with replacement, each with its chance."""
    return torch.multinomial(chances, count, replacement=True, generator=generator)


def importance_weights(chances: Tensor, drawn: Tensor, beta: float) -> Tensor:  # (count,), largest is 1
    """w(i) = (N·P(i))^−β / max w, N counting samples that can be drawn: undoes the bias of uneven draws, all of it at β = 1."""
    possible = (chances > 0).sum()
    weight = (possible * chances[drawn]) ** -beta
    return weight / weight.max()
