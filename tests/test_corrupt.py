import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.corrupt import (
    add_label_noise,
    corrupt,
    draw_balanced,
    imbalance_counts,
    unbalance,
)
from distill.data.images import Images
from synthesis_kernels.errors import EchosetError

CLASSES = 10


def numbered(labels):
    """Each image's three pixels are its number, so that it is known again."""
    number = torch.arange(len(labels))
    images = torch.stack([number % 256, number // 256, number // 65536], 1).to(torch.uint8)
    return Images(images[:, :, None, None], torch.as_tensor(labels), "numbered")


def numbers(data):
    return (data.images[:, :, 0, 0].long() @ torch.tensor([1, 256, 65536])).tolist()


MANY = numbered(torch.arange(20000) % CLASSES)


def within(share, chance, count, rounding=1e-9):
    return abs(share - chance) <= 4 * math.sqrt(chance * (1 - chance) / count) + rounding


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6, 1.0])
def test_label_noise_happens_at_its_rate(rate):
    noisy = add_label_noise(MANY, CLASSES, rate, seed=1)
    changed = (noisy.data.labels != MANY.labels).double().mean().item()
    assert noisy.changed == pytest.approx(changed, abs=1e-6) and within(
        changed, rate * (1 - 1 / CLASSES), len(MANY)
    )
    drawn = float(noisy.report.split(": ")[1].split("%")[0]) / 100
    assert within(drawn, rate, len(MANY), rounding=0.0005)
    assert f"{changed:.1%} changed" in noisy.report and noisy.report.startswith("20000 images")
    assert noisy.data.images is MANY.images and noisy.data.labels.dtype is torch.int64
    assert noisy.counts == np.bincount(noisy.data.labels.numpy(), minlength=CLASSES).tolist()
    assert noisy.report.endswith(f"changed, by class {noisy.counts}")


def test_the_report_of_label_noise_counts_the_labels_as_they_are_now():
    noisy = add_label_noise(numbered([0] * 50), 3, 1.0, seed=0)
    told = [int(count) for count in noisy.report.split("by class [")[1].rstrip("]").split(", ")]
    assert told == [(noisy.data.labels == c).sum().item() for c in range(3)]
    assert sum(told) == 50 and min(told) > 0


def test_new_labels_are_uniform_over_all_classes_the_own_one_too():
    labels = add_label_noise(MANY, CLASSES, 1.0, seed=3).data.labels
    table = np.zeros((CLASSES, CLASSES))
    np.add.at(table, (MANY.labels.numpy(), labels.numpy()), 1)
    expected = len(MANY) / CLASSES**2
    # Chi-squared with 90 degrees of freedom: mean 90, standard deviation √180.
    assert abs(((table - expected) ** 2 / expected).sum() - 90) < 4 * math.sqrt(180)
    assert within(np.trace(table) / len(MANY), 1 / CLASSES, len(MANY))


def test_who_is_hit_does_not_follow_from_the_class():
    changed = add_label_noise(MANY, CLASSES, 0.4, seed=5).data.labels != MANY.labels
    assert all(
        within(changed[MANY.labels == c].double().mean().item(), 0.36, 2000) for c in range(CLASSES)
    )


@pytest.mark.parametrize("how", ["noise=0.3", "imbalance=0.5"])
def test_damage_follows_from_the_seed(how):
    before = MANY.labels.clone()
    torch.manual_seed(1)
    one = corrupt(MANY, CLASSES, how, 0)
    torch.manual_seed(2)
    two, other = corrupt(MANY, CLASSES, how, 0), corrupt(MANY, CLASSES, how, 1)
    assert torch.equal(one.data.images, two.data.images) and torch.equal(
        one.data.labels, two.data.labels
    )
    assert one.report == two.report and torch.equal(MANY.labels, before)
    assert numbers(one.data) != numbers(other.data) or not torch.equal(
        one.data.labels, other.data.labels
    )


def test_no_damage_leaves_everything():
    left = corrupt(MANY, CLASSES, "none", 0)
    assert left.data is MANY and left.changed == 0 and left.counts == [2000] * CLASSES


def exact_counts(largest, classes, gamma):
    """a − n_1·b = n_1 and a − n_K·b = n_K·K^γ, solved as two linear equations."""
    smallest = largest / 20
    a, b = np.linalg.solve([[1, -largest], [1, -smallest]], [largest, smallest * classes**gamma])
    return [a / (b + c**gamma) for c in range(1, classes + 1)]


@pytest.mark.parametrize("gamma", [0.2, 1, 2])
def test_imbalance_is_that_of_the_study(gamma):
    counts = imbalance_counts(5000, 10, gamma)
    assert counts == [round(n) for n in exact_counts(5000, 10, gamma)]
    assert counts[0] == 5000 and counts[-1] == 250 and counts == sorted(counts, reverse=True)


def test_a_small_exponent_drops_first():
    small, middle, large = (imbalance_counts(5000, 10, gamma) for gamma in (0.2, 1, 2))
    assert all(a < b < c for a, b, c in zip(small[1:-1], middle[1:-1], large[1:-1], strict=True))


@given(st.integers(20, 10**5), st.integers(2, 200), st.floats(0.05, 4))
@settings(max_examples=20)
def test_any_imbalance_solves_its_equations(largest, classes, gamma):
    counts = imbalance_counts(largest, classes, gamma)
    assert counts[0] == largest and abs(counts[-1] - largest / 20) <= 0.5 + 1e-6
    assert all(n >= m for n, m in pairwise(counts))
    np.testing.assert_allclose(
        counts, exact_counts(largest, classes, gamma), atol=0.5 + 1e-6 * largest
    )


def test_unbalance_keeps_exactly_that_many():
    labels = torch.cat([torch.full((60 + 7 * c,), c) for c in range(CLASSES)])
    data = numbered(labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))])
    left = unbalance(data, CLASSES, 1.0, seed=2)
    wanted = imbalance_counts(60, CLASSES, 1.0)
    assert (
        left.counts == wanted == np.bincount(left.data.labels.numpy(), minlength=CLASSES).tolist()
    )
    kept = numbers(left.data)
    assert kept == sorted(set(kept)) and torch.equal(
        left.data.labels, data.labels[kept]
    )  # no image twice, each with its label
    assert (
        f"{sum(wanted)} images left" in left.report
        and str(wanted) in left.report
        and left.changed == 0
    )


@given(st.lists(st.integers(3, 9), min_size=2, max_size=6), st.data())
@settings(max_examples=20)
def test_a_balanced_draw(sizes, draw):
    classes = len(sizes)
    data = numbered(torch.cat([torch.full((size,), c) for c, size in enumerate(sizes)]))
    count = draw.draw(st.integers(1, classes * min(sizes)))
    drawn = draw_balanced(data, classes, count, draw.draw(st.integers(0, 5)))
    counts = np.bincount(drawn.labels.numpy(), minlength=classes)
    kept = numbers(drawn)
    assert len(drawn) == count and max(counts) - min(counts) <= 1
    assert kept == sorted(set(kept)) and torch.equal(drawn.labels, data.labels[kept])


def test_a_balanced_draw_follows_from_the_seed():
    one, two, other = (numbers(draw_balanced(MANY, CLASSES, 100, seed)) for seed in (4, 4, 5))
    assert one == two != other


def test_a_balanced_draw_refuses_too_many():
    data = numbered([0] * 5 + [1] * 3)
    assert len(draw_balanced(data, 2, 7, 0)) == 7  # four of the first class
    with pytest.raises(
        EchosetError, match="numbered has 3 images in its smallest class, 8 would take 4 of each"
    ):
        draw_balanced(data, 2, 8, 0)
    with pytest.raises(EchosetError, match="0 images in its smallest class"):
        draw_balanced(data, 3, 3, 0)


@pytest.mark.parametrize(
    "how, says",
    [
        ("noise=abc", "abc is not a number"),
        ("blur=1", "'blur=1' is no corruption; there are none, noise=RATE and imbalance=GAMMA"),
        ("noise", "is no corruption"),
        ("imbalance", "is no corruption"),
        ("none=1", "is no corruption"),
        ("", "is no corruption"),
        ("noise=1.1", r"must lie in \[0, 1\], got 1.1"),
        ("noise=-0.1", r"must lie in \[0, 1\]"),
        ("noise=nan", r"must lie in \[0, 1\]"),
        ("imbalance=0", "must lie above 0 and up to 20, got 0"),
        ("imbalance=-1", "must lie above 0"),
    ],
)
def test_corruptions_that_make_no_sense(how, says):
    with pytest.raises(EchosetError, match=says):
        corrupt(MANY, CLASSES, how, 0)


@pytest.mark.parametrize("how", ["none", "noise=0.1", "imbalance=1"])
def test_labels_that_are_missing_or_too_large(how):
    with pytest.raises(EchosetError, match="bare has no labels"):
        corrupt(Images(MANY.images, None, "bare"), CLASSES, how, 0)
    with pytest.raises(EchosetError, match="labels outside 0 to 8"):
        corrupt(MANY, 9, how, 0)


def test_imbalance_needs_images_in_every_class():
    with pytest.raises(EchosetError, match="imbalance needs"):
        corrupt(numbered([0, 1, 1]), 3, "imbalance=1", 0)
    with pytest.raises(EchosetError, match="imbalance needs"):
        imbalance_counts(100, 1, 1.0)


@pytest.mark.parametrize("how", ["imbalance=nan", "imbalance=inf", "imbalance=1000"])
def test_exponents_beyond_all_bounds(how):
    with pytest.raises(EchosetError, match="exponent"):
        corrupt(MANY, CLASSES, how, 0)


class ByMajority:
    """A task of several decisions an image: it counts for the class that most of them are."""

    def group(self, labels, classes):
        return labels.flatten(1).mode(1).values


def test_images_of_several_labels_are_drawn_by_the_class_they_count_for():
    groups = torch.arange(60) % 3
    maps = groups[:, None, None].repeat(1, 2, 2)
    maps[:, 0, 0] = 0  # a quarter of every image is of another class
    data = replace(numbered(groups), labels=maps)
    drawn = draw_balanced(data, 3, 30, 0, ByMajority())
    assert numbers(drawn) == numbers(draw_balanced(numbered(groups), 3, 30, 0))
    assert torch.equal(drawn.labels, maps[numbers(drawn)])
    left = corrupt(data, 3, "imbalance=1", 0, ByMajority())
    assert left.counts == imbalance_counts(20, 3, 1.0)
    assert corrupt(data, 3, "none", 0, ByMajority()).counts == [20] * 3
    with pytest.raises(EchosetError, match="numbered has several labels an image; give the task"):
        draw_balanced(data, 3, 30, 0)
    with pytest.raises(EchosetError, match="2 × 2 labels an image, and label noise is for one"):
        corrupt(data, 3, "noise=0.4", 0, ByMajority())
