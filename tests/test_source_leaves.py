"""Leaves: their shapes, sizes and how much they cover."""

import math

import pytest
import torch
from drawing import random

from inversion.sources import leaves
from inversion.sources.leaves import Leaves


def test_leaves_are_flat_shapes():
    pictures = Leaves(smallest=0.15).draw(random("flat"), 24, 3, 48, 48)
    flat = (pictures[..., 1:] == pictures[..., :-1]).all(1).double().mean((1, 2))
    assert flat.min() > 0.4
    assert flat.mean() > 0.7
    for picture in pictures:
        counts = (
            picture.flatten(1).T.unique(dim=0, return_counts=True)[1].sort(descending=True).values
        )
        assert counts[:40].sum() > 0.5 * 48 * 48
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_leaves_cover_as_much_as_was_asked():
    def black(cover):
        return (
            (Leaves(smallest=0.1, cover=cover).draw(random("cover"), 32, 3, 24, 24) == 0)
            .all(1)
            .double()
            .mean((1, 2))
        )

    assert black(1.0).max() < 0.002  # what shapes left bare has a colour of its own
    little = black(0.15)
    assert little.max() < 0.85
    assert little.mean() > 0.05
    assert little.mean() > 2 * black(0.9).mean()


@pytest.mark.parametrize("smallest", [0.03, 0.2])
def test_radii_have_density_proportional_to_the_inverse_cube(smallest):
    shapes = leaves._shapes(random("radii"), 20_000, smallest, 40, 40)
    radius = shapes[:, 3].double().sort().values / 40
    assert radius.min() >= smallest * 0.999
    assert radius.max() <= 1.001
    law = (smallest**-2 - radius**-2) / (
        smallest**-2 - 1
    )  # ∫ r⁻³ from the least radius, over the whole
    steps = torch.arange(1, 20_001).double() / 20_000
    assert torch.maximum(
        (law - steps).abs(), (law - steps + 1 / 20_000).abs()
    ).max() < 1.63 / math.sqrt(20_000)
    centres = shapes[:, 1:3] / 40
    assert centres.min() >= 0
    assert centres.max() <= 1
    assert (centres.mean(0) - 0.5).abs().max() < 0.01


def test_shapes_cover_the_areas_of_their_kinds():
    shapes = leaves._shapes(random("areas"), 400, 0.1, 128, 128)
    scale = 50 / shapes[:, 3]
    shapes[:, 12:] *= scale[:, None]
    shapes[:, 1:3] = 64.3
    shapes[:, 3] = 50
    pixels = torch.arange(128).expand(400, 128)
    area = leaves._covered(shapes, pixels, pixels).sum(1) / 50**2
    circle = shapes[:, 0] > 0
    distance = shapes[:, 12:] / 50
    triangle = ~circle & distance.isinf().any(1)
    square = ~circle & ~triangle & ((distance - math.sqrt(0.5)).abs() < 1e-4).all(1)
    for kind, expected in ((circle, math.pi), (triangle, 3 * math.sqrt(3) / 4), (square, 2.0)):
        assert 60 < kind.sum() < 140
        torch.testing.assert_close(
            area[kind], torch.full_like(area[kind], expected), rtol=0.01, atol=0
        )
    # Any other: of the triangles between the centre and two corners, whose angle is twice that
    # between side and corner.
    other = ~(circle | triangle | square)
    half = distance[other].clamp(-1, 1).acos()
    torch.testing.assert_close(
        half.sum(1), torch.full((int(other.sum()),), math.pi), atol=1e-2, rtol=0
    )
    torch.testing.assert_close(area[other], ((2 * half).sin() / 2).sum(1), rtol=0, atol=0.04)


@pytest.mark.parametrize("height, width", [(8, 8), (33, 33), (13, 40), (96, 8)])
def test_small_shapes_drawn_in_windows_come_out_as_on_the_whole_canvas(height, width):
    shapes = leaves._shapes(random("windows"), 600, 0.03, height, width)
    down = torch.arange(height)
    across = torch.arange(width)
    everywhere = leaves._covered(shapes, down.expand(600, -1), across.expand(600, -1)).view(
        600, height, width
    )
    pieces = torch.zeros_like(everywhere)
    seen = torch.zeros(600)
    for some, rows, columns in leaves._windows(shapes, height, width):
        seen[some] += 1
        masks = leaves._covered(shapes[some], rows, columns).view(
            len(some), rows.shape[1], columns.shape[1]
        )
        pieces[some[:, None, None], rows[:, :, None], columns[:, None]] = masks
    assert (seen == 1).all()
    # Sharp corners are drawn beyond the radius, and a window may cut these tips off.
    x, y, radius = (part[:, None, None] for part in shapes[:, 1:4].unbind(1))
    inside = torch.hypot(across + 0.5 - x, down[:, None] + 0.5 - y) <= radius + 0.5
    assert inside.any()
    assert (everywhere[inside] - pieces[inside]).abs().max() < 1e-4
    assert (everywhere - pieces).abs().mean() < 1e-3


def test_windows_change_next_to_nothing_in_a_picture(monkeypatch):
    windowed = Leaves().draw(random("windows"), 4, 3, 33, 33)

    def whole(shapes, height, width):
        rows = torch.arange(height).expand(len(shapes), -1)
        columns = torch.arange(width).expand(len(shapes), -1)
        return [(torch.arange(len(shapes)), rows, columns)]

    monkeypatch.setattr(leaves, "_windows", whole)
    apart = (Leaves().draw(random("windows"), 4, 3, 33, 33) - windowed).abs()
    assert (apart > 1e-3).double().mean() < 0.01
    assert apart.mean() < 1e-3
