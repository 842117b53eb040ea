"""Shaders: every part of a program, and programs as a whole."""

import math

import pytest
import torch
from conftest import ROOT
from drawing import random
from hypothesis import given, settings
from hypothesis import strategies as st

from inversion.sources import shaders
from inversion.sources.shaders import Program, Shaders, changes, fields, joins, shades
from inversion.sources.shaders.changes import SYMMETRIES, WARPS
from inversion.sources.shaders.fields import FIELDS
from inversion.sources.shaders.joins import JOINS
from inversion.sources.shaders.plane import camera
from inversion.sources.shaders.shades import PALETTES, TONES


def test_there_are_thousands_of_programs_and_a_few_draws_meet_them():
    met = {shaders.random_program(random("programs", number)) for number in range(3000)}
    assert len(met) >= 2900
    assert shaders.programs_count() > 1_000_000
    for kind, parts in (
        ("symmetry", SYMMETRIES),
        ("warp", WARPS),
        ("first", FIELDS),
        ("second", FIELDS),
        ("join", JOINS),
        ("tone", TONES),
        ("palette", PALETTES),
    ):
        assert len(set(parts)) == len(parts)
        assert {getattr(program, kind) for program in met} == set(parts)


def test_programs_that_differ_in_an_unused_field_count_once(monkeypatch):
    for name, length in (
        ("SYMMETRIES", 1),
        ("WARPS", 2),
        ("FIELDS", 3),
        ("JOINS", 2),
        ("TONES", 1),
        ("PALETTES", 1),
    ):
        monkeypatch.setattr(shaders, name, getattr(shaders, name)[:length])
    assert shaders.JOINS[0] is joins.one
    assert shaders.programs_count() == 2 * (3 + 3 * 3)


seeds = st.integers(0, 2**40)
plain = settings(max_examples=12)


def plane(seed, count=3, size=12):
    return camera(random("camera", seed), count, size, size)


@pytest.mark.parametrize("part", [*SYMMETRIES, *WARPS], ids=lambda part: part.__name__)
@given(seeds)
@plain
def test_every_change_of_the_plane_keeps_it_finite(part, seed):
    for changed in part(random(seed), plane(seed)):
        assert changed.shape == (3, 12, 12)
        assert changed.isfinite().all()
        assert changed.abs().max() < 30


@pytest.mark.parametrize("field", FIELDS, ids=lambda part: part.__name__)
@given(seeds)
@plain
def test_every_field_is_finite_and_the_same_again(field, seed):
    value = field(random(seed), plane(seed))
    # far below nothing is dark
    assert value.shape == (3, 12, 12)
    assert value.isfinite().all()
    assert value.max() < 20
    assert torch.equal(value, field(random(seed), plane(seed)))
    far = field(random(seed), tuple(10 * part for part in plane(seed)))  # a warp may look far away
    assert far.isfinite().all()


@pytest.mark.parametrize("join", JOINS, ids=lambda part: part.__name__)
@given(seeds, st.sampled_from(FIELDS), st.sampled_from(FIELDS))
@plain
def test_every_join_is_finite(join, seed, first, second):
    value = join(random(seed), first, second, plane(seed))
    assert value.shape == (3, 12, 12)
    assert value.isfinite().all()


@pytest.mark.parametrize("tone", TONES, ids=lambda part: part.__name__)
@given(seeds, st.sampled_from([0.0, 1.0, 30.0]))
@plain
def test_every_tone_maps_values_from_minus_one_to_one_into_the_range(tone, seed, size):
    shade = tone(random(seed), random("values", seed).uniform(3, 12, 12, low=-1.0) * size)
    assert shade.shape == (3, 12, 12)
    assert shade.isfinite().all()
    if size <= 1 or tone is not shades.soft:
        assert shade.min() >= 0
        assert shade.max() <= 1


@pytest.mark.parametrize("palette", PALETTES, ids=lambda part: part.__name__)
@given(seeds, st.sampled_from([1, 3]), st.sampled_from([0.0, 1.0]))
@plain
def test_every_palette_gives_colours_in_range(palette, seed, channels, spread):
    colours = palette(random(seed), spread * random("shades", seed).uniform(3, 12, 12), channels)
    assert colours.shape == (3, channels, 12, 12)
    assert colours.isfinite().all()
    assert colours.min() >= -1e-6
    assert colours.max() <= 1 + 1e-6


@given(seeds, st.sampled_from([1, 3]), st.integers(1, 5))
@settings(max_examples=60)
def test_any_program_paints_pictures_and_the_same_again(seed, channels, count):
    one, other = (
        shaders.random_program(r).paint(r, count, channels, 11, 11)
        for r in (random(seed), random(seed))
    )
    assert torch.equal(one, other)
    assert one.shape == (count, channels, 11, 11)
    assert one.isfinite().all()
    assert one.min() >= 0
    assert one.max() <= 1


def test_pictures_of_a_group_share_a_program_and_no_number(monkeypatch):
    calls = []
    paint = Program.paint

    def watched(self, r, count, *shape):
        calls.append((self, count))
        return paint(self, r, count, *shape)

    monkeypatch.setattr(Program, "paint", watched)
    pictures = Shaders().draw(random("groups"), 40, 1, 16, 16)
    assert [count for _, count in calls] == [16, 16, 8]
    assert len({program for program, _ in calls}) == 3
    assert pictures.shape == (40, 1, 16, 16)
    assert len(pictures.flatten(1).unique(dim=0)) == 40


def test_symmetries_and_warps_do_what_they_say():
    x, y = plane(0)
    for part in (changes.kaleidoscope, changes.swirl):
        torch.testing.assert_close(torch.hypot(*part(random(0), (x, y))), torch.hypot(x, y))
    for part in (changes.mirror, changes.quarters):
        for value, expected_value in zip(
            part(random(0), (x, y)), part(random(0), (-x, y)), strict=True
        ):
            assert torch.equal(value, expected_value)
    sector = math.pi / random(0).integers(3, 8, 3, 1, 1)
    turned = (
        x * (2 * sector).cos() - y * (2 * sector).sin(),
        x * (2 * sector).sin() + y * (2 * sector).cos(),
    )
    for value, expected_value in zip(
        *(changes.kaleidoscope(random(0), p) for p in ((x, y), turned)), strict=True
    ):
        torch.testing.assert_close(value, expected_value, atol=1e-4, rtol=0)
    side = random(0).uniform(3, 1, 1, low=0.5, high=1.2)
    for value, expected_value in zip(
        *(changes.tiles(random(0), p) for p in ((x, y), (x + 2 * side, y))), strict=True
    ):
        assert (
            (value - expected_value).abs() % (2 * side).max() < 1e-4
        ).double().mean() > 0.95  # but for a seam moved by rounding
    squares = changes.mosaic(random(0), (x, y))
    assert all(len(values.unique()) <= 45 for part in squares for values in part)


def test_known_fields_by_their_formulas():
    x, y = plane(3)
    angle = random(3).uniform(3, 1, 1, high=2 * math.pi)
    torch.testing.assert_close(fields.slope(random(3), (x, y)), x * angle.cos() + y * angle.sin())
    points = random(3).uniform(8, 2, 3, 1, 1, low=-1.3, high=1.3)
    distances = torch.hypot(x - points[:, 0], y - points[:, 1]).sort(0).values
    torch.testing.assert_close(fields.cells(random(3), (x, y)), 2 * distances[0] - 1)
    torch.testing.assert_close(
        fields.cracks(random(3), (x, y)),
        4 * (distances[1] - distances[0]) - 1,
        atol=1e-5,
        rtol=1e-5,
    )


def test_joins_and_palettes_by_their_formulas():
    def first(r, p):
        return p[0]

    def second(r, p):
        return p[1]

    x, y = plane(1)
    expected = {
        joins.one: x,
        joins.product: x * y,
        joins.larger: x.maximum(y),
        joins.smaller: x.minimum(y),
    }
    for join, value in expected.items():
        assert torch.equal(join(random(1), first, second, (x, y)), value)
    hidden = joins.stencil(random(1), first, second, (x, y))
    torch.testing.assert_close(
        hidden[y < -1], torch.full_like(hidden[y < -1], -1), atol=1e-2, rtol=0
    )
    shade = torch.linspace(0, 1, 4)[:, None].expand(4, 4)[None]
    colours = random(1).uniform(4, 1, 3, 1, 1)  # four stops, met at thirds
    torch.testing.assert_close(
        shades.stops(random(1), shade, 3)[0, :, :3, 0].T, colours[:3, 0, :, 0, 0]
    )


def test_the_page_counts_the_programs():
    page = (ROOT / "docs" / "sources.md").read_text()
    assert f"There are {shaders.programs_count():,} shader programs." in page
