"""Joins: two fields as one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inversion.sources.random import Random
from inversion.sources.shaders.plane import Field, Plane, draw_like

Join = Callable[[Random, Field, Field, Plane], Tensor]
"""Values of two fields, joined."""


def one(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """The first alone."""
    return first(random, plane)


def total(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """The first, and more or less of the second."""
    return first(random, plane) + draw_like(random, plane, -1, 1) * second(random, plane)


def product(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """Each dims the other, or turns it over."""
    return first(random, plane) * second(random, plane)


def larger(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """Whichever is larger."""
    return torch.maximum(first(random, plane), second(random, plane))


def smaller(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """Whichever is smaller."""
    return torch.minimum(first(random, plane), second(random, plane))


def stencil(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """The first where the second is positive, and nothing elsewhere."""
    inside = (8 * second(random, plane)).sigmoid()
    return inside * (first(random, plane) + 1) - 1


def bent(random: Random, first: Field, second: Field, plane: Plane) -> Tensor:
    """The first, seen through the second as through uneven glass."""
    shift = draw_like(random, plane, 0.1, 0.6) * second(random, plane).clamp(-2, 2)
    return first(random, (plane[0] + shift, plane[1] - shift))


JOINS: tuple[Join, ...] = (one, total, product, larger, smaller, stencil, bent)
