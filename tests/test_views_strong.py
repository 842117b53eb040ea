import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from distill.data.augment import TURN, make_views, view_labels
from distill.data.operations import OPERATIONS, randaugment
from distill.options import ViewOptions
from synthesis_kernels.counter import uniforms
from synthesis_kernels.views import ViewPlan, views

STILL = ViewOptions(rotate=0, scale=0, shift=0)
KINDS = {
    "operations": replace(STILL, operations=2, strength=1.0),
    "cutmix": replace(STILL, cutmix=0.7),
    "erase": replace(STILL, erase=0.7),
    "mixup": replace(STILL, mixup=0.7),
    "all": ViewOptions(flip=True, cutout=0.2, mixup=0.5, cutmix=0.5, erase=0.5, operations=3),
}


def drawn(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pool_of(channels, count=24, side=20):
    return (drawn(channels, count, channels, side, side) * 256).to(torch.uint8)


def views_of(pool, options, view=0, seed=0):
    index = torch.arange(len(pool))
    return make_views(pool, index, torch.full_like(index, view), options, seed)


def labels_of(pool, options, view=0, seed=0):
    index = torch.arange(len(pool))
    return view_labels(
        torch.eye(len(pool)), index, torch.full_like(index, view), pool, options, seed
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_view_is_the_same_in_any_batch(kind, channels):
    pool, options = pool_of(channels), KINDS[kind]
    index, view = torch.arange(24).repeat(3), torch.arange(3).repeat_interleave(24)
    together = make_views(pool, index, view, options, 5)
    assert together.shape == (72, channels, 20, 20) and together.dtype is torch.float32
    assert together.min() >= 0 and together.max() <= 1 + 1e-6
    order = torch.randperm(72, generator=torch.Generator().manual_seed(0))
    for size in (1, 7):
        apart = torch.cat(
            [make_views(pool, index[some], view[some], options, 5) for some in order.split(size)]
        )
        torch.testing.assert_close(apart, together[order], rtol=0, atol=1e-6)
    torch.manual_seed(9)  # nothing is drawn from torch's own state
    assert torch.equal(make_views(pool, index, view, options, 5), together)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_and_views_differ(kind):
    pool, options = pool_of(3), KINDS[kind]
    one = views_of(pool, options)
    for other in (views_of(pool, options, seed=1), views_of(pool, options, view=1)):
        assert sum(not torch.allclose(a, b) for a, b in zip(one, other, strict=True)) >= 12


def test_what_is_off_draws_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr("distill.data.augment.uniforms", lambda *a: asked.append(a) or uniforms(*a))
    pool, index = pool_of(3), torch.arange(24)
    options = replace(
        STILL, shift=0.1, flip=True, cutout=0.3, mixup=0.4, cutmix=0, erase=0, operations=0
    )
    plain = views(pool, index, index * 0 + 3, ViewPlan(2, True, 6, 0.4), 8)
    assert torch.equal(make_views(pool, index, index * 0 + 3, options, 8), plain) and not asked
    labels = drawn(0, 24, 4)
    assert (
        torch.equal(
            view_labels(labels, index, index, pool, ViewOptions(erase=1, operations=2), 0), labels
        )
        and not asked
    )


@pytest.mark.parametrize("before", [STILL, ViewOptions(flip=True, mixup=0.5)])
def test_what_is_switched_on_leaves_the_rest_as_it_was(before):
    pool = pool_of(1, 60)
    plain, erased, pasted = (
        views_of(pool, replace(before, **more), 2, 3)
        for more in ({}, {"erase": 1.0}, {"cutmix": 1.0})
    )
    for changed in (erased, pasted):
        for mask in (changed != plain).any(1):
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            assert (rows.diff() == 1).all() and (columns.diff() == 1).all()  # one rectangle
            inside = mask[mask.any(1)][:, mask.any(0)].float()
            assert (
                not inside.numel() or inside.mean() > 0.9
            )  # a pixel may have the same value by chance
    # What is pasted are another image's own pixels at this place.
    places = (pasted != plain).any(1).nonzero()
    values = (pasted[places[:, 0], 0, places[:, 1], places[:, 2]] * 255).round().to(torch.uint8)
    assert (pool[:, 0, places[:, 1], places[:, 2]] == values).any(0).all() and len(places) > 1000


@given(st.integers(0, 2**40), st.integers(0, 99), st.sampled_from([(12, 12), (9, 16)]))
@settings(max_examples=20)
def test_pasted_labels_are_the_pasted_pixels(seed, view, sides):
    pool = (
        (torch.arange(25, dtype=torch.uint8) * 10)[:, None, None, None]
        .expand(25, 1, *sides)
        .contiguous()
    )
    options = replace(STILL, cutmix=0.8)
    owners = (views_of(pool, options, view, seed) * 25.5).round().long().flatten(1)
    counted = torch.stack([torch.bincount(row, minlength=25) for row in owners]) / (
        sides[0] * sides[1]
    )
    torch.testing.assert_close(labels_of(pool, options, view, seed), counted, rtol=0, atol=1e-6)


def test_half_of_the_views_are_pasted_and_the_part_is_any():
    pool = pool_of(1, 1000, 16)
    own = labels_of(pool, replace(STILL, cutmix=0.5)).diagonal()
    assert 400 < (own < 1).sum() < 520  # half of them, less the boxes too small for a pixel
    shares = 1 - labels_of(pool, replace(STILL, cutmix=1.0)).diagonal()
    assert shares.min() < 0.05 and shares.max() > 0.85
    # A square of side √a around a centre anywhere covers (√a − a/4)² on average; over all a that is
    # 1/2 − 1/5 + 1/48.
    assert shares.mean() == pytest.approx(0.3208, abs=0.03)


@pytest.mark.parametrize("more", [{}, {"cutmix": 0.6}])
@given(st.integers(0, 2**40), st.integers(0, 99))
@settings(max_examples=10)
def test_blended_labels_are_the_blended_colours(more, seed, view):
    colours = (drawn(1, 20, 3) * 256).to(torch.uint8)
    pool = colours[:, :, None, None].expand(20, 3, 8, 8).contiguous()
    options = replace(STILL, mixup=0.7, **more)
    rows = labels_of(pool, options, view, seed)
    torch.testing.assert_close(
        views_of(pool, options, view, seed).mean((2, 3)), rows @ (colours / 255), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(rows.sum(1), torch.ones(20))
    assert rows.min() >= 0 and (rows > 0).sum(1).max() <= 2 + len(more)


def test_labels_follow_mixup_through_everything_else():
    pool, options = pool_of(3), ViewOptions(mixup=0.7, cutmix=0.6)
    busy = replace(options, flip=True, rotate=30, erase=0.5, operations=2, cutout=0.3)
    assert torch.equal(labels_of(pool, options), labels_of(pool, busy))


def test_an_erased_box_has_the_stated_size():
    side = 64
    pool = torch.zeros(600, 1, side, side, dtype=torch.uint8)
    masks = views_of(pool, replace(STILL, erase=0.5))[:, 0] > 0
    assert 240 < masks.any((1, 2)).sum() < 360  # half of them
    whole, areas = 0, []
    for mask in masks[masks.any((1, 2))]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        tall, wide = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
        assert mask.sum() >= 0.99 * tall * wide  # full of noise, which is black hardly ever
        if rows[0] > 0 and columns[0] > 0 and rows[-1] < side - 1 and columns[-1] < side - 1:
            whole += 1
            areas.append(tall * wide / side**2)
            # Sides are whole pixels: one more or less.
            assert (tall - 1) * (wide - 1) < 0.33 * side**2 and (tall + 1) * (
                wide + 1
            ) > 0.02 * side**2
            assert (tall - 1) / (wide + 1) < 3.3 and (wide - 1) / (tall + 1) < 3.3
    assert whole > 60 and min(areas) < 0.05 and max(areas) > 0.15
    noise = views_of(pool, replace(STILL, erase=1.0))
    noise = noise[noise > 0]
    assert noise.mean() == pytest.approx(0.5, abs=0.01) and noise.var() == pytest.approx(
        1 / 12, abs=0.005
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "name",
    [
        "brightness",
        "contrast",
        "sharpness",
        "colour",
        "shear-x",
        "shear-y",
        "posterize",
        "solarize",
    ],
)
def test_an_operation_of_no_size_changes_nothing(name, channels):
    images = drawn(2, 5, channels, 12, 12)
    tolerance = 1 / 255 if name == "posterize" else 1e-5
    torch.testing.assert_close(
        OPERATIONS[name](images, torch.zeros(5)), images, rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_shape_and_range_and_does_something(name, channels):
    images = drawn(3, 6, channels, 18, 18) * 0.8 + 0.1
    size = torch.tensor([-1, -0.6, -0.3, 0.3, 0.6, 1])
    kept = images.clone()
    changed = OPERATIONS[name](images, size)
    assert torch.equal(images, kept) and changed.shape == images.shape and changed.isfinite().all()
    assert changed.min() >= -1e-6 and changed.max() <= 1 + 1e-6
    assert ((changed - images).abs().flatten(1).amax(1) > 1e-3).all()
    # Each image by its own size alone.
    alone = torch.cat(
        [OPERATIONS[name](image[None], one[None]) for image, one in zip(images, size, strict=True)]
    )
    torch.testing.assert_close(changed, alone, rtol=0, atol=1e-6)


def test_operations_are_what_their_names_say():
    images, size = (drawn(4, 8, 3, 20, 20) * 255).round() / 255, torch.linspace(-0.95, 0.95, 8)
    x, s = images.double().numpy(), size.double().numpy()[:, None, None, None]
    grey = np.einsum("bchw,c->bhw", x, [0.299, 0.587, 0.114])[:, None]
    bits = 8 - np.round(8 - 6 * abs(s)).astype(int)
    low, high = x.min((2, 3), keepdims=True), x.max((2, 3), keepdims=True)
    expected = {
        "brightness": x + 0.7 * s,
        "contrast": grey.mean((2, 3), keepdims=True)
        + (1 + 0.9 * s) * (x - grey.mean((2, 3), keepdims=True)),
        "colour": grey + (1 + 0.9 * s) * (x - grey),
        "posterize": ((x * 255).round().astype(int) >> bits << bits) / 255,
        "solarize": np.where(x < 1 + 1 / 512 - abs(s), x, 1 - x),
        "autocontrast": (x - low) / (high - low),
    }
    for name, exact in expected.items():
        np.testing.assert_allclose(
            OPERATIONS[name](images, size).numpy(), exact.clip(0, 1), atol=1e-3, err_msg=name
        )
    ours = OPERATIONS["equalize"](images, size)[0].permute(1, 2, 0) * 255
    theirs = np.asarray(
        ImageOps.equalize(Image.fromarray((x[0] * 255).round().astype(np.uint8).transpose(1, 2, 0)))
    )
    assert abs(ours.numpy() - theirs).max() <= 1


def test_grey_images_change_their_gamma():
    images = drawn(5, 2, 1, 4, 4)
    changed = OPERATIONS["colour"](images, torch.tensor([0.5, -0.5]))
    torch.testing.assert_close(
        changed, images ** torch.tensor([0.6, -0.6]).exp()[:, None, None, None]
    )


def test_sharpness_blurs_below_zero_and_sharpens_above():
    images = 0.4 + 0.2 * drawn(6, 2, 1, 12, 12)
    blurred, sharp = OPERATIONS["sharpness"](images, torch.tensor([-0.9, 0.9]))
    assert blurred.var() < images[0].var() and sharp.var() > images[1].var()


@pytest.mark.parametrize("name, line", [("shear-x", (2, 3)), ("shear-y", (3, 2))])
def test_shear_slants_a_line(name, line):
    side, size = 41, 0.5
    images = torch.zeros(1, 1, side, side)
    images.select(line[1], side // 2).fill_(1)  # a line through the middle, upright for shear-x
    changed = OPERATIONS[name](images, torch.tensor([size]))[0, 0]
    changed = changed if name == "shear-x" else changed.T
    places = torch.arange(side, dtype=torch.float32)
    centres = changed @ places / changed.sum(1)
    torch.testing.assert_close(
        centres, side // 2 - 0.6 * size * (places - side // 2), rtol=0, atol=0.51
    )


@pytest.mark.parametrize("channels, strength", [(1, 1.0), (3, 0.4)])
def test_randaugment_gives_each_image_its_own_operations(channels, strength):
    images, draws = drawn(7, 60, channels, 18, 18), drawn(8, 3, 3, 60)
    found = randaugment(images, draws, strength)
    operations = list(OPERATIONS.values())
    apart, everywhere = [], images
    for image, mine in zip(images, draws.permute(2, 0, 1), strict=True):
        image = image[None]
        for choice, size, sign in mine:
            signed = size[None] * strength * (-1 if sign < 0.5 else 1)
            image = operations[int(choice * 10)](image, signed).clamp(0, 1)
        apart.append(image)
    for choice, size, sign in draws:  # as on CUDA: everything computed, then taken where wanted
        signed = size * strength * torch.where(sign < 0.5, -1.0, 1.0)
        every = torch.stack([operation(everywhere, signed) for operation in operations])
        everywhere = every[(choice * 10).long(), torch.arange(60)].clamp(0, 1)
    for other in (torch.cat(apart), everywhere):
        # Sharpness rounds differently in another batch, and posterize may then take a pixel at its
        # step to the next level.
        assert ((found - other).abs() > 1e-5).float().mean() < 1e-4
    assert (
        (draws[:, 0] * 10).long().unique() == torch.arange(10)
    ).all()  # every operation had its turn


def test_randaugment_is_made_of_independent_draws():
    """A view's rounds differ, and its operations are all of the ten in equal parts."""
    index = torch.arange(4000)
    choice = (uniforms(index, index * 0, 4, 6).view(2, 3, -1)[:, 0] * 10).long()
    counts = torch.bincount(choice[0] * 10 + choice[1], minlength=100).double()
    assert abs(((counts - 40) ** 2 / 40).sum() - 99) < 4 * (2 * 99) ** 0.5


def test_solarize_of_no_size_leaves_white():
    images = torch.ones(2, 1, 8, 8)
    torch.testing.assert_close(OPERATIONS["solarize"](images, torch.zeros(2)), images)


def test_autocontrast_leaves_a_constant_image():
    images = torch.full((2, 3, 8, 8), 0.7)
    torch.testing.assert_close(OPERATIONS["autocontrast"](images, torch.ones(2)), images)


def turned(image, draws, options):
    """A square image of one channel, pixel by pixel: whence each comes, and the four pixels around
    that place by nearness.
    """
    side, (turn, zoom, right, down) = len(image), 2 * draws - 1
    angle, size, out = (
        math.radians(options.rotate) * turn,
        1 + options.scale * zoom,
        np.zeros(image.shape),
    )
    for i, j in np.ndindex(image.shape):
        y, x = i + 0.5 - side / 2, j + 0.5 - side / 2  # from the middle
        row = (
            size * (math.sin(angle) * x + math.cos(angle) * y)
            + options.shift * side * down
            + side / 2
            - 0.5
        )
        column = (
            size * (math.cos(angle) * x - math.sin(angle) * y)
            + options.shift * side * right
            + side / 2
            - 0.5
        )
        above, left = math.floor(row), math.floor(column)
        for r, c in product((above, above + 1), (left, left + 1)):
            if 0 <= r < side and 0 <= c < side:
                out[i, j] += image[r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    return out


@pytest.mark.parametrize(
    "change", [{"rotate": 40}, {"scale": 0.4}, {"rotate": 40, "scale": 0.4, "shift": 0.2}]
)
def test_a_turned_view_takes_each_pixel_from_where_it_was(change):
    pool, options, index = pool_of(1, 6, 9), replace(STILL, **change), torch.arange(6)
    draws = uniforms(index, torch.full_like(index, 4), 7 + TURN, 4).double().numpy().T
    images = pool[:, 0].double().numpy() / 255
    expected = np.stack(
        [turned(image, mine, options) for image, mine in zip(images, draws, strict=True)]
    )
    np.testing.assert_allclose(views_of(pool, options, 4, 7)[:, 0].numpy(), expected, atol=1e-4)
