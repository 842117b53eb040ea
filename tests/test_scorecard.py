"""The scorecard: what it asks the teacher, and the whole card."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring import SPEC, pixels, random
from torch import nn

from distill import Classifier, build_classifier, load_images
from distill.models.frozen import Frozen
from distill.runtime import Runtime
from inversion import MNIST_SLICE, ScoreOptions, score
from inversion.scoring.answers import bn_gap, boundary_distances, gather_answers, steadiness
from inversion.scoring.scorecard import content_order
from inversion.scoring.scores import SCORES
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.views import ViewPlan, views_reference

CPU = torch.device("cpu")


@pytest.fixture
def linear():
    """A teacher whose boundaries are known: logits W·x, without BatchNorm."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        network[1].weight.copy_(random(3, 64))
    return Classifier(network, SPEC).eval().requires_grad_(False)


@pytest.fixture
def normed():
    torch.manual_seed(0)
    return build_classifier(replace(SPEC, model="convnet-4")).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def few():
    return load_images(MNIST_SLICE).chosen(torch.arange(240))


def test_the_distance_to_a_linear_boundary_is_exact(linear):
    images = pixels(20)
    weights = linear.network[1].weight.double() / 0.5
    bias = linear.network[1].bias.double()
    flat = images.flatten(1).double() / 255
    logits = (flat - 0.4) @ weights.T + bias
    best = logits.topk(2, 1)
    expected = (best.values[:, 0] - best.values[:, 1]) / (
        weights[best.indices[:, 0]] - weights[best.indices[:, 1]]
    ).norm(dim=1)
    result = boundary_distances(Frozen(linear), images, 7, CPU)
    assert torch.allclose(result.double(), expected.clamp_max(8), rtol=1e-4)


@pytest.mark.parametrize("told", [{"shift": 0.25, "flip": True, "cutout": 0.5}, {"flip": True}, {}])
def test_steadiness_is_the_share_decided_alike_in_a_view(linear, told):
    linear.spec = replace(SPEC, notes={"views": told} if told else {})
    images = pixels(60)
    chosen = linear(images / 255).argmax(1)
    result = steadiness(Frozen(linear), images, chosen, 7, CPU)
    # Views by their definition: nothing cut out. Where nothing is told, a shift of a sixteenth of 8
    # pixels is none.
    plan = ViewPlan(2 if "shift" in told else 0, bool(told))
    seen = views_reference(images, torch.arange(60), torch.zeros(60, dtype=torch.int64), plan, 0)
    assert result == pytest.approx((linear(seen).argmax(1) == chosen).float().mean().item())
    assert (result < 1) == bool(told)


def test_the_gap_is_nothing_for_the_data_that_made_the_statistics(normed):
    images = pixels(300)
    for module in normed.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of all batches, of which there is one
    normed.train()(images.float() / 255)
    normed.eval()
    # Running variances are unbiased, and the smallest maps have 300 · 2 · 2 values.
    assert gather_answers(Frozen(normed), images, 50, CPU, True).gap < 2e-3
    first = next(
        module for module in normed.network.modules() if isinstance(module, nn.BatchNorm2d)
    )
    frozen = Frozen(normed)
    target = frozen.target()
    mean = target.mean.double()
    variance = target.variance.double()
    assert bn_gap(frozen, mean, variance) == 0
    far = mean.clone()
    far[0] += 3 * first.running_var[0].sqrt()
    assert bn_gap(frozen, far, variance) == pytest.approx(3 / math.sqrt(2 * len(mean)), rel=1e-5)


def test_the_set_s_moments_are_those_of_one_large_batch(normed):
    images = pixels(90)
    frozen = Frozen(normed)
    _, (mean, variance) = frozen.with_moments(images.float() / 255)
    assert gather_answers(frozen, images, 32, CPU, True).gap == pytest.approx(
        bn_gap(frozen, mean.double(), variance.double()), rel=1e-4
    )


def test_scores_of_real_digits(teacher, few):
    card = score(few.images, teacher, "own", runtime=Runtime(device="cpu", quiet=True))
    assert set(card.values) == {one.name for one in SCORES}
    assert None not in card.values.values()
    assert (card.decisions == few.labels).float().mean() > 0.98
    assert card.counts == torch.bincount(card.decisions, minlength=10).tolist() == card.raw_counts
    assert sum(card.margins) == 240
    assert card.values["coverage"] > 0.98
    assert card.values["bn_gap"] < 0.3
    one = score(few.images[card.decisions == 3], teacher, runtime=Runtime(device="cpu", quiet=True))
    assert one.values["coverage"] == 0
    assert one.overall == 0
    assert one.values["coverage_raw"] is None
    json.dumps(card.document())


def test_neither_order_nor_chunks_matter(teacher, few):
    card = score(few.images, teacher, runtime=Runtime(device="cpu", quiet=True))
    order = torch.randperm(240, generator=torch.Generator().manual_seed(0))
    again = score(few.images[order], teacher, runtime=Runtime(device="cpu", quiet=True))
    assert again.values == card.values
    assert torch.equal(again.decisions, card.decisions[order])
    other = score(
        few.images, teacher, None, ScoreOptions(batch=37), runtime=Runtime(device="cpu", quiet=True)
    )
    for name, value in other.values.items():
        assert name == "coverage_raw" or card.values[name] == pytest.approx(
            value, rel=1e-4, abs=1e-6
        ), name


def test_samples_are_said(teacher, few):
    card = score(
        few.images,
        teacher,
        options=ScoreOptions(gradients=20, compared=100),
        runtime=Runtime(device="cpu", quiet=True),
    )
    assert "of 20 of the images" in card.notes[0]
    assert "of 100 of the images" in card.notes[1]
    assert max(card.readouts) == 80


def test_equal_images_stay_together():
    order = content_order(torch.cat([pixels(30), pixels(30)]))
    assert all(a % 30 == b % 30 for a, b in order.view(30, 2).tolist())


@settings(max_examples=8)
@given(st.integers(10, 40), st.integers(0, 99), st.sampled_from([0, 1, 255]), st.booleans())
def test_scores_lie_in_their_ranges(count, seed, bright, plain):
    torch.manual_seed(seed)
    network = (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        if plain
        else build_classifier(replace(SPEC, model="convnet-4")).network
    )
    images = (
        pixels(count, seed)
        if bright == 255
        else torch.full((count, 1, 8, 8), bright * 200, dtype=torch.uint8)
    )
    card = score(
        images,
        Classifier(network, SPEC).eval(),
        [0, 1, 2],
        runtime=Runtime(device="cpu", quiet=True),
    )
    for one in SCORES:
        value = card.values[one.name]
        if value is None:
            assert one.name == "bn_gap"
            assert plain
        else:
            assert (
                one.limits[0] - 1e-9
                <= value
                <= (math.inf if one.limits[1] is None else one.limits[1] + 1e-9)
            ), one.name
            assert math.isfinite(value)
    assert 0 <= card.overall <= 1


def test_a_teacher_whose_moments_cannot_be_had_has_no_gap(linear):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.head = nn.Linear(64, 3)

        def forward(self, images):
            return self.head(self.norm(self.norm(images)).flatten(1))

    for network in (linear, Classifier(Twice(), SPEC).eval()):
        card = score(pixels(30), network, runtime=Runtime(device="cpu", quiet=True))
        assert card.values["bn_gap"] is None
        assert card.values["rank"] > 1


@pytest.mark.parametrize(
    "images, raw, message",
    [
        (pixels(20, side=9), None, "read them with load_images"),
        (pixels(20).float(), None, "read them with load_images"),
        (pixels(9), None, "give 10 at least"),
        (pixels(20), [1, 2], "raw_counts should be 3 whole numbers"),
        (pixels(20), [0, 0, 0], "raw_counts should be"),
        (pixels(20), [1, 2, -1], "raw_counts should be"),
    ],
)
def test_what_cannot_be_scored_is_refused(linear, images, raw, message):
    with pytest.raises(EchosetError, match=message):
        score(images, linear, raw, runtime=Runtime(device="cpu", quiet=True))


def test_the_page_has_every_definition():
    text = (ROOT / "docs" / "scorecard.md").read_text()
    for one in SCORES:
        assert f"| {one.heading} | {one.definition} | {one.range} | {one.good} |" in text
