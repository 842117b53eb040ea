import math
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data.images import fit_pixels
from distill.sets.transfer_set import write_manifest, write_shard
from inversion.sources import DRAWN, fractals, leaves, shaders
from inversion.sources.exposure import expose
from inversion.sources.fractals import Fractals
from inversion.sources.leaves import Leaves
from inversion.sources.noise import GaussianNoise, UniformNoise
from inversion.sources.random import Random
from inversion.sources.shaders import Program, Shaders, changes, fields, joins, shades
from inversion.sources.shaders.changes import SYMMETRIES, WARPS
from inversion.sources.shaders.fields import FIELDS
from inversion.sources.shaders.joins import JOINS
from inversion.sources.shaders.plane import camera
from inversion.sources.shaders.shades import PALETTES, TONES
from inversion.sources.stream import BLOCK, DrawnSource, StoredSource, open_source, open_sources
from synthesis_kernels.errors import EchosetError

CPU = torch.device("cpu")
FAST = [
    "noise",
    "gaussian",
    "smooth",
    "pink",
    "leaves:smallest=0.3,cover=0.5",
    "shaders",
    "fractals",
    "strokes:thickest=0.1",
]  # plain leaves take long


def random(*key):
    return Random("cpu", *key)


def floats(address, channels, size, number=0):
    return open_source(address, channels, size).block(number).double() / 255


# Every drawn source


def test_every_drawn_source_is_tested():
    assert {address.partition(":")[0] for address in FAST} == set(DRAWN)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32, 33])
@pytest.mark.parametrize("address", FAST)
def test_blocks_have_the_shape_and_type_that_was_asked_for(address, size, channels):
    source = open_source(address, channels, size)
    block = source.block(0)
    assert (
        block.shape == (BLOCK, channels, size, size)
        and block.dtype == torch.uint8
        and source.blocks is None
    )
    assert block.min() <= 2 and block.max() >= 253  # the range is used
    assert len(block.flatten(1).unique(dim=0)) > 0.9 * BLOCK  # and the pictures differ


def test_plain_leaves_too():
    block = open_source("leaves", 1, 8).block(0)
    assert block.shape == (BLOCK, 1, 8, 8) and block.dtype == torch.uint8


@pytest.mark.parametrize("address", FAST)
def test_a_block_follows_from_source_seed_and_number_alone(address):
    one, other = open_source(address, 1, 8, seed=5), open_source(address, 1, 8, seed=5)
    state = torch.get_rng_state()
    third, first = one.block(2), one.block(0)
    assert torch.equal(torch.get_rng_state(), state)  # the global stream is nobody's business
    torch.manual_seed(1)
    assert torch.equal(other.block(0), first) and torch.equal(other.block(2), third)
    assert not torch.equal(first, third)
    assert not torch.equal(open_source(address, 1, 8, seed=6).block(0), first)


def test_another_address_is_another_stream():
    assert not torch.equal(
        open_source("gaussian", 1, 8).block(0),
        open_source("gaussian:deviation=0.25", 1, 8).block(0),
    )


# Noise


def test_uniform_noise_is_uniform_and_each_pixel_drawn_alone():
    values = open_source("noise", 3, 28).block(0)
    expected = torch.full((256,), values.numel() / 255).double()
    expected[[0, -1]] /= 2  # rounding leaves the ends half as wide
    surprise = (
        (torch.bincount(values.flatten().long(), minlength=256) - expected).square() / expected
    ).sum()
    assert 255 - 5 * 22.6 < surprise < 255 + 5 * 22.6  # χ² with 255 degrees of freedom
    centred = values.double() - values.double().mean()
    for one, other in (
        (centred[..., 1:], centred[..., :-1]),
        (centred[:, :, 1:], centred[:, :, :-1]),
        (centred[:, 1:], centred[:, :-1]),
        (centred[1:], centred[:-1]),
    ):
        correlation = (one * other).mean() / centred.square().mean()
        assert correlation.abs() < 4 / math.sqrt(one.numel())


def test_gaussian_noise_has_the_stated_deviation():
    narrow = open_source("gaussian:deviation=0.1", 1, 28).block(0).double()
    assert narrow.mean().item() == pytest.approx(
        127.5, abs=0.2
    ) and narrow.std().item() == pytest.approx(25.5, abs=0.1)
    wide = open_source("gaussian", 1, 28).block(0)
    for end in (0, 255):  # two deviations away
        assert (wide == end).double().mean().item() == pytest.approx(0.0228, abs=0.002)


def amplitude_slopes(pictures):  # (N, size, size) -> (N,)
    """The exponents by which amplitude falls with frequency, by numpy's transform and least
    squares.
    """
    size = pictures.shape[-1]
    amplitude = np.abs(np.fft.fft2(pictures.numpy())).reshape(len(pictures), -1)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))).ravel()
    inside = (frequency > 0) & (frequency < 0.5)
    x = np.log(frequency[inside])
    x = x - x.mean()
    return np.log(amplitude[:, inside] + 1e-9) @ x / (x @ x)


def test_pink_noise_falls_with_frequency():
    slopes = amplitude_slopes(floats("pink", 1, 32)[:, 0])
    assert slopes.mean() == pytest.approx(-1.25, abs=0.06)  # uniform from 0.5 to 2
    assert (
        np.percentile(slopes, 5) < -1.75
        and np.percentile(slopes, 95) > -0.75
        and slopes.min() > -2.3
        and slopes.max() < -0.2
    )
    assert amplitude_slopes(floats("noise", 1, 32)[:, 0]).mean() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("address", ["smooth", "pink"])
def test_noise_that_is_stretched_spans_the_range_in_each_picture(address):
    block = open_source(address, 3, 28).block(0).flatten(1)
    assert (block.amin(1) == 0).all() and (block.amax(1) == 255).all()


def test_smooth_noise_is_smooth_to_different_degrees():
    pictures = floats("smooth", 1, 32)
    jumps = (pictures[..., 1:] - pictures[..., :-1]).abs().mean((1, 2, 3))
    assert jumps.max() < 0.15 and jumps.max() > 3 * jumps.min()


# Leaves


def test_leaves_are_flat_shapes():
    pictures = Leaves(smallest=0.15).draw(random("flat"), 24, 3, 48)
    flat = (pictures[..., 1:] == pictures[..., :-1]).all(1).double().mean((1, 2))
    assert flat.min() > 0.4 and flat.mean() > 0.7
    for picture in pictures:
        counts = (
            picture.flatten(1).T.unique(dim=0, return_counts=True)[1].sort(descending=True).values
        )
        assert counts[:40].sum() > 0.5 * 48 * 48
    assert pictures.min() >= 0 and pictures.max() <= 1


def test_leaves_cover_as_much_as_was_asked():
    def black(cover):
        return (
            (Leaves(smallest=0.1, cover=cover).draw(random("cover"), 32, 3, 24) == 0)
            .all(1)
            .double()
            .mean((1, 2))
        )

    assert black(1.0).max() < 0.002  # what shapes left bare has a colour of its own
    little = black(0.15)
    assert little.max() < 0.85 and little.mean() > 0.05 and little.mean() > 2 * black(0.9).mean()


@pytest.mark.parametrize("smallest", [0.03, 0.2])
def test_radii_have_density_proportional_to_the_inverse_cube(smallest):
    shapes = leaves._shapes(random("radii"), 20_000, smallest, 40)
    radius = shapes[:, 3].double().sort().values / 40
    assert radius.min() >= smallest * 0.999 and radius.max() <= 1.001
    law = (smallest**-2 - radius**-2) / (
        smallest**-2 - 1
    )  # ∫ r⁻³ from the least radius, over the whole
    steps = torch.arange(1, 20_001).double() / 20_000
    assert torch.maximum(
        (law - steps).abs(), (law - steps + 1 / 20_000).abs()
    ).max() < 1.63 / math.sqrt(20_000)
    centres = shapes[:, 1:3] / 40
    assert centres.min() >= 0 and centres.max() <= 1 and (centres.mean(0) - 0.5).abs().max() < 0.01


def test_shapes_cover_the_areas_of_their_kinds():
    shapes = leaves._shapes(random("areas"), 400, 0.1, 128)
    scale = 50 / shapes[:, 3]
    shapes[:, 12:] *= scale[:, None]
    shapes[:, 1:3], shapes[:, 3] = 64.3, 50
    pixels = torch.arange(128).expand(400, 128)
    area = leaves._covered(shapes, pixels, pixels).sum(1) / 50**2
    circle, distance = shapes[:, 0] > 0, shapes[:, 12:] / 50
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


@pytest.mark.parametrize("size", [8, 33])
def test_small_shapes_drawn_in_windows_come_out_as_on_the_whole_canvas(size):
    shapes = leaves._shapes(random("windows"), 600, 0.03, size)
    pixels = torch.arange(size)
    everywhere = leaves._covered(shapes, pixels.expand(600, -1), pixels.expand(600, -1)).view(
        600, size, size
    )
    pieces, seen = torch.zeros_like(everywhere), torch.zeros(600)
    for some, rows, columns in leaves._windows(shapes, size):
        seen[some] += 1
        masks = leaves._covered(shapes[some], rows, columns).view(
            len(some), rows.shape[1], columns.shape[1]
        )
        pieces[some[:, None, None], rows[:, :, None], columns[:, None]] = masks
    assert (seen == 1).all()
    # Sharp corners are drawn beyond the radius, and a window may cut these tips off.
    x, y, radius = (part[:, None, None] for part in shapes[:, 1:4].unbind(1))
    inside = torch.hypot(pixels + 0.5 - x, pixels[:, None] + 0.5 - y) <= radius + 0.5
    assert inside.any() and (everywhere[inside] - pieces[inside]).abs().max() < 1e-4
    assert (everywhere - pieces).abs().mean() < 1e-3


def test_windows_change_next_to_nothing_in_a_picture(monkeypatch):
    windowed = Leaves().draw(random("windows"), 4, 3, 33)

    def whole(shapes, size):
        return [(torch.arange(len(shapes)), *torch.arange(size).expand(2, len(shapes), size))]

    monkeypatch.setattr(leaves, "_windows", whole)
    apart = (Leaves().draw(random("windows"), 4, 3, 33) - windowed).abs()
    assert (apart > 1e-3).double().mean() < 0.01 and apart.mean() < 1e-3


# Fractals


class KnownMaps(Random):
    """Three maps of half size about three corners, then random walks: a flat triangle of
    Sierpiński's, white on black.
    """

    def __init__(self):
        super().__init__("cpu", "known")
        count, maps = 1, fractals.MAPS
        offsets = torch.zeros(2, count, maps)
        offsets[:, 0, :3] = torch.tensor([[0.0, 0.5, 0.25], [0.0, 0.0, 0.25]])
        half, ones = torch.full((count, maps), 0.5), torch.ones(count, maps)
        self.known = [
            torch.zeros(2, count, maps),
            half,
            ones,
            ones,
            offsets,
        ]  # turns, sizes, ratios, signs, offsets
        self.after = [
            torch.ones(1, 1, 1, 1),
            torch.tensor([1.0, 0.0]).view(2, 1, 1, 1, 1),
            torch.ones(1, 1, 1, 1),
        ]

    def uniform(self, *shape, low=0.0, high=1.0):
        if self.known:
            given = self.known.pop(0)
        elif shape == (1, fractals.WALKERS):
            return super().uniform(*shape, low=low, high=high)
        else:
            given = self.after.pop(0)
        assert tuple(given.shape) == shape
        return given

    def integers(self, low, high, *shape):
        assert (low, high, shape) == (2, fractals.MAPS, (1, 1))
        return torch.full(shape, 3)


def test_known_maps_give_their_known_attractor():
    size = 33
    lit = Fractals().draw(KnownMaps(), 1, 1, size)[0, 0] > 0
    # The same set from its own definition: all images of a corner under seven maps, one after
    # another.
    points = np.zeros((1, 2))
    for _ in range(7):
        points = np.concatenate(
            [points / 2 + corner for corner in ([0, 0], [0.5, 0], [0.25, 0.25])]
        )
    known = torch.zeros(size, size)
    points = points / points.max() + [0, 0.25]  # half as high as wide, and in the middle
    place = np.rint(points * (size - 1)).astype(int)
    known[place[:, 1], place[:, 0]] = 1
    near = torch.nn.functional.max_pool2d(known[None], 3, 1, 1)[0] > 0
    assert not (lit & ~near).any()
    assert (lit & (known > 0)).sum() > 0.85 * (known > 0).sum()
    assert not near.all() and not lit[14, 16]  # in the hole in the middle
    assert not lit[:7].any() and not lit[26:].any()  # it is half as high as wide, and stays so


def test_fractals_fill_the_canvas_along_their_longer_side_and_are_sparse():
    pictures = Fractals().draw(random("box"), 64, 3, 32)
    assert pictures.isfinite().all() and pictures.min() >= 0 and pictures.max() <= 1
    grounds = pictures.flatten(2).mode(2).values[:, :, None, None]
    on_black = (pictures.flatten(1).amin(1) == 0).nonzero()[:, 0]
    assert 16 < len(on_black) < 48 and len(grounds) == 64  # half of them
    for picture in pictures[on_black]:
        rows, columns = (picture.amax(0) > 0).nonzero().unbind(1)
        longer, shorter = sorted((rows, columns), key=lambda part: part.min())
        assert longer.min() == 0 and longer.max() == 31
        assert abs(shorter.min() + shorter.max() - 31) <= 1  # in the middle along the other
        colour = picture.flatten(1)[:, picture.amax(0).flatten().argmax()]
        shade = picture / colour[:, None, None].clamp_min(1e-9)
        torch.testing.assert_close(
            shade, shade[:1].expand(3, -1, -1), atol=1e-4, rtol=0
        )  # one colour, more or less bright


def test_fractals_are_of_many_kinds():
    covered = torch.cat(
        [
            (p.amax(0, keepdim=True) > 0).double().mean((1, 2))
            for p in Fractals().draw(random(1), 64, 1, 32)
        ]
    )
    assert covered.min() < 0.15 and covered.max() > 0.4


# Shaders


def test_there_are_thousands_of_programs_and_a_few_draws_meet_them():
    met = {shaders.random_program(random("programs", number)) for number in range(3000)}
    assert len(met) >= 2900 and shaders.programs_count() > 1_000_000
    for kind, parts in (
        ("symmetry", SYMMETRIES),
        ("warp", WARPS),
        ("first", FIELDS),
        ("second", FIELDS),
        ("join", JOINS),
        ("tone", TONES),
        ("palette", PALETTES),
    ):
        assert len(set(parts)) == len(parts) and {getattr(program, kind) for program in met} == set(
            parts
        )


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
    assert shaders.JOINS[0] is joins.one and shaders.programs_count() == 2 * (3 + 3 * 3)


seeds = st.integers(0, 2**40)
plain = settings(max_examples=12)


def plane(seed, count=3, size=12):
    return camera(random("camera", seed), count, size)


@pytest.mark.parametrize("part", [*SYMMETRIES, *WARPS], ids=lambda part: part.__name__)
@given(seeds)
@plain
def test_every_change_of_the_plane_keeps_it_finite(part, seed):
    for changed in part(random(seed), plane(seed)):
        assert (
            changed.shape == (3, 12, 12) and changed.isfinite().all() and changed.abs().max() < 30
        )


@pytest.mark.parametrize("field", FIELDS, ids=lambda part: part.__name__)
@given(seeds)
@plain
def test_every_field_is_finite_and_the_same_again(field, seed):
    value = field(random(seed), plane(seed))
    assert (
        value.shape == (3, 12, 12) and value.isfinite().all() and value.max() < 20
    )  # far below nothing is dark
    assert torch.equal(value, field(random(seed), plane(seed)))
    far = field(random(seed), tuple(10 * part for part in plane(seed)))  # a warp may look far away
    assert far.isfinite().all()


@pytest.mark.parametrize("join", JOINS, ids=lambda part: part.__name__)
@given(seeds, st.sampled_from(FIELDS), st.sampled_from(FIELDS))
@plain
def test_every_join_is_finite(join, seed, first, second):
    value = join(random(seed), first, second, plane(seed))
    assert value.shape == (3, 12, 12) and value.isfinite().all()


@pytest.mark.parametrize("tone", TONES, ids=lambda part: part.__name__)
@given(seeds, st.sampled_from([0.0, 1.0, 30.0]))
@plain
def test_every_tone_maps_values_from_minus_one_to_one_into_the_range(tone, seed, size):
    shade = tone(random(seed), random("values", seed).uniform(3, 12, 12, low=-1.0) * size)
    assert shade.shape == (3, 12, 12) and shade.isfinite().all()
    if size <= 1 or tone is not shades.soft:
        assert shade.min() >= 0 and shade.max() <= 1


@pytest.mark.parametrize("palette", PALETTES, ids=lambda part: part.__name__)
@given(seeds, st.sampled_from([1, 3]), st.sampled_from([0.0, 1.0]))
@plain
def test_every_palette_gives_colours_in_range(palette, seed, channels, spread):
    colours = palette(random(seed), spread * random("shades", seed).uniform(3, 12, 12), channels)
    assert colours.shape == (3, channels, 12, 12) and colours.isfinite().all()
    assert colours.min() >= -1e-6 and colours.max() <= 1 + 1e-6


@given(seeds, st.sampled_from([1, 3]), st.integers(1, 5))
@settings(max_examples=60)
def test_any_program_paints_pictures_and_the_same_again(seed, channels, count):
    one, other = (
        shaders.random_program(r).paint(r, count, channels, 11)
        for r in (random(seed), random(seed))
    )
    assert torch.equal(one, other) and one.shape == (count, channels, 11, 11)
    assert one.isfinite().all() and one.min() >= 0 and one.max() <= 1


def test_pictures_of_a_group_share_a_program_and_no_number(monkeypatch):
    calls = []
    paint = Program.paint

    def watched(self, r, count, *shape):
        calls.append((self, count))
        return paint(self, r, count, *shape)

    monkeypatch.setattr(Program, "paint", watched)
    pictures = Shaders().draw(random("groups"), 40, 1, 16)
    assert [count for _, count in calls] == [16, 16, 8] and len(
        {program for program, _ in calls}
    ) == 3
    assert pictures.shape == (40, 1, 16, 16) and len(pictures.flatten(1).unique(dim=0)) == 40


def test_symmetries_and_warps_do_what_they_say():
    x, y = plane(0)
    for part in (changes.kaleidoscope, changes.swirl):
        torch.testing.assert_close(torch.hypot(*part(random(0), (x, y))), torch.hypot(x, y))
    for part in (changes.mirror, changes.quarters):
        for ours, theirs in zip(part(random(0), (x, y)), part(random(0), (-x, y)), strict=True):
            assert torch.equal(ours, theirs)
    sector = math.pi / random(0).integers(3, 8, 3, 1, 1)
    turned = (
        x * (2 * sector).cos() - y * (2 * sector).sin(),
        x * (2 * sector).sin() + y * (2 * sector).cos(),
    )
    for ours, theirs in zip(
        *(changes.kaleidoscope(random(0), p) for p in ((x, y), turned)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    side = random(0).uniform(3, 1, 1, low=0.5, high=1.2)
    for ours, theirs in zip(
        *(changes.tiles(random(0), p) for p in ((x, y), (x + 2 * side, y))), strict=True
    ):
        assert (
            (ours - theirs).abs() % (2 * side).max() < 1e-4
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


# Exposure


@pytest.mark.parametrize("channels", [1, 3])
def test_exposure_makes_the_darker_part_black_and_the_brightest_white(channels):
    images = open_source("noise", channels, 16).block(0)
    assert torch.equal(expose(images, random(0), 0.0), images)
    figures = expose(images, random(0), 1.0)
    assert figures.dtype == torch.uint8 and figures.shape == images.shape
    assert (figures.flatten(1).amin(1) == 0).all()
    assert (
        figures.flatten(1).amax(1) == 255
    ).double().mean() > 0.98  # but where less than a twentieth of the range is left
    black = (figures == 0).all(1).double().mean((1, 2))
    if channels == 1:
        assert (
            0.4 < black.mean() < 0.75
            and black.min() < 0.1
            and black.max() > 0.85
            and black.max() < 0.99
        )
    else:
        assert black.mean() > 0.15
    assert torch.equal(expose(images, random(0), 1.0), figures) and not torch.equal(
        expose(images, random(1), 1.0), figures
    )


def test_exposure_takes_about_the_share_that_was_asked_and_leaves_the_others_alone():
    images = open_source("noise", 1, 8).block(0)
    changed = (expose(images, random(2), 0.3) != images).flatten(1).any(1)
    assert abs(int(changed.sum()) - 0.3 * BLOCK) < 3 * math.sqrt(BLOCK * 0.3 * 0.7)
    source = open_source("noise", 1, 8)
    half = type(source)(**{**vars(source), "exposed": 0.5}).block(0)
    assert abs(int((half != images).flatten(1).any(1).sum()) - 256) < 3 * math.sqrt(BLOCK / 4)


def test_every_second_exposed_picture_has_a_frame_with_black_around_it():
    flat = torch.full((BLOCK, 1, 24, 24), 200, dtype=torch.uint8)
    figures = expose(flat, random(3), 1.0)[
        :, 0
    ]  # without a frame there is nothing to tell apart, and all becomes black
    framed = (figures.flatten(1) > 0).any(1)
    assert abs(int(framed.sum()) - 256) < 3 * math.sqrt(BLOCK / 4)
    corners = figures[framed][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.double().mean() < 40 < 100 < figures[framed].flatten(1).amax(1).double().mean()


# Addresses


def test_settings_are_read_from_the_address():
    assert open_source("leaves:smallest=0.1,cover=0.5", 1, 8).drawer == Leaves(0.1, 0.5)
    assert open_source("leaves:cover=0.25", 1, 8).drawer == Leaves(cover=0.25)
    assert open_source("gaussian:deviation=1", 1, 8).drawer == GaussianNoise(1.0)
    assert open_source("noise", 1, 8).drawer == UniformNoise()


@pytest.mark.parametrize(
    "address, message",
    [
        ("leaves:covr=0.5", "leaves has no setting 'covr'; it has smallest, cover"),
        ("noise:cover=0.5", "noise has no setting 'cover'; it has none"),
        ("leaves:cover=much", "leaves:cover: 'much' is not a number"),
        ("leaves:cover", "leaves:cover: '' is not a number"),
        ("leaves:cover=0", "leaves:cover must lie above 0 and up to 1, got 0"),
        ("gaussian:deviation=1.5", "gaussian:deviation must lie above 0 and up to 1, got 1.5"),
        ("gaussian:deviation=nan", "must lie above 0 and up to 1, got nan"),
        (
            "nois",
            "no source 'nois': it is neither noise, gaussian, smooth, pink, leaves, shaders, "
            "fractals, strokes, nor a file or folder",
        ),
    ],
)
def test_addresses_that_lead_nowhere_are_refused_by_name(address, message):
    with pytest.raises(EchosetError, match=re.escape(message)):
        open_source(address, 1, 8)


@pytest.mark.parametrize("addresses", [[], ["noise", "pink", "noise"]])
def test_sources_are_at_least_one_and_none_twice(addresses):
    with pytest.raises(EchosetError, match="name one source at least, and none twice"):
        open_sources(addresses, 1, 8, 0, CPU, True)


def picture(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labelled", [False, True])
def test_a_folder_of_any_pictures_is_a_source(tmp_path, channels, labelled):
    arrays = [picture(0, 20, 30), picture(1, 9, 9, 3), picture(2, 40, 12, 3)]
    for number, array in enumerate(arrays):
        folder = tmp_path / f"class{number % 2}" if labelled else tmp_path
        folder.mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / f"{number}.png")
    source = open_source(str(tmp_path), channels, 10)
    block = source.block(0)
    assert (
        block.shape == (3, channels, 10, 10)
        and block.dtype == torch.uint8
        and source.blocks == 1
        and isinstance(source, StoredSource)
    )
    pixels = [
        torch.from_numpy(a).permute(2, 0, 1) if a.ndim == 3 else torch.from_numpy(a)[None]
        for a in arrays
    ]
    expected = {fit_pixels(p[None], channels, 10).numpy().tobytes() for p in pixels}
    assert {image.numpy().tobytes() for image in block} == expected


def test_a_folder_that_is_called_like_a_source_is_given_with_a_dot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").mkdir()
    Image.fromarray(picture(0, 8, 8)).save(tmp_path / "noise" / "0.png")
    assert isinstance(open_source("noise", 1, 8), DrawnSource)
    assert open_source("./noise", 1, 8).block(0)[0, 0].tolist() == picture(0, 8, 8).tolist()


def test_stored_images_come_in_an_order_that_follows_from_the_seed_and_each_once(tmp_path):
    number = np.arange(1100)
    images = np.zeros((1100, 8, 8), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = number // 256, number % 256
    np.savez(tmp_path / "many.npz", images=images)

    def order(seed):
        source = open_source(str(tmp_path / "many.npz"), 1, 8, seed)
        assert source.blocks == 3
        blocks = [source.block(n) for n in (2, 0, 1)]
        assert [len(block) for block in blocks] == [76, 512, 512]
        both = torch.cat([blocks[1], blocks[2], blocks[0]])[:, 0, 0, :2].long()
        return (both[:, 0] * 256 + both[:, 1]).tolist()

    found = order(0)
    assert sorted(found) == number.tolist() and found != number.tolist()
    assert order(0) == found and order(1) != found


def test_a_transfer_set_is_a_source(tmp_path):
    images = torch.from_numpy(picture(4, 5, 1, 8, 8))
    logits = torch.eye(2)[[0, 1, 0, 1, 0]]
    zeros = torch.zeros(5)
    tensors = {
        "images": images,
        "labels": logits.argmax(1),
        "logits": logits,
        "priority": zeros,
        "round": zeros,
    }
    name = "shard-00000-of-00001.safetensors"
    entry = {"file": name, "sha256": write_shard(tmp_path / name, tensors), "count": 5}
    contract = {
        "channels": 1,
        "size": 8,
        "classes": 2,
        "task": "classification",
        "mean": [0.0],
        "std": [1.0],
    }
    manifest = {
        "code_version": "0",
        "config": {},
        "teacher": {},
        "input": contract,
        "counts": [3, 2],
        "shards": [entry],
    }
    write_manifest(tmp_path, manifest)
    block = open_source(str(tmp_path), 1, 8).block(0)
    assert {i.numpy().tobytes() for i in block} == {i.numpy().tobytes() for i in images}
    assert open_source(str(tmp_path), 3, 12).block(0).shape == (5, 3, 12, 12)


def test_a_folder_without_pictures_says_so(tmp_path):
    with pytest.raises(EchosetError, match=str(tmp_path)):
        open_source(str(tmp_path), 1, 8)


@pytest.mark.parametrize("size", [27, 28, 33])
def test_strokes_are_lines_on_a_ground(size):
    """Most of an image is one plain colour, and every image has a line on it."""
    images = floats("strokes", 1, size)
    ground = images.flatten(1).mode(1).values[:, None]
    share = ((images.flatten(1) - ground).abs() < 1e-6).double().mean(1)
    assert share.median() > 0.5
    assert share.max() < 1


@pytest.mark.parametrize("size", [27, 33])
def test_strokes_are_the_same_picture_at_any_size(size):
    """A picture drawn three times as large, and averaged down, is the picture drawn small."""
    small = floats("strokes", 3, size)
    large = torch.nn.functional.avg_pool2d(floats("strokes", 3, 3 * size), 3)
    assert (small - large).abs().mean() < 0.01
    shifted = (small - large.roll(1, -1)).abs().mean()
    assert shifted > 3 * (small - large).abs().mean()


def test_strokes_are_no_thinner_than_their_thinnest():
    with pytest.raises(
        EchosetError, match=r"thinnest must not be above thickest, got 0\.2 and 0\.1"
    ):
        open_source("strokes:thinnest=0.2,thickest=0.1", 1, 8)
    with pytest.raises(EchosetError, match=r"thinnest must not be above thickest, got 0\.02 and"):
        open_source("strokes:thickest=0.01", 1, 8)
    assert open_source("strokes:thinnest=0.1,thickest=0.1", 1, 8).block(0).any()


def test_the_page_counts_the_programs():
    page = (ROOT / "docs" / "sources.md").read_text()
    assert f"There are {shaders.programs_count():,} shader programs." in page
