"""The boundary attack: its samples lie where known boundaries are."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn
from walking import (
    PIXELS,
    SIDE,
    all_targets,
    count_asks,
    leads,
    linear,
    pictures,
    random_linear,
    same,
)

from distill import load_images
from distill.models import Classifier, ModelSpec
from distill.models.frozen import Frozen
from inversion import MNIST_SLICE
from inversion.options import BoundaryOptions
from inversion.sources.boundary import BoundarySamples, attack_boundaries


@pytest.fixture(scope="module")
def digits():
    return load_images(MNIST_SLICE).images[::200]  # ten


@pytest.fixture(scope="module")
def attacked(teacher, digits):
    return attack_boundaries(teacher, digits, all_targets(len(digits), 10))


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("close", [0.7, 1.5, 6.0])
def test_pairs_enclose_the_known_boundary(classes, close):
    network = random_linear(classes, classes, 30.0)
    images = pictures(1, 40)
    made = attack_boundaries(
        network, images, all_targets(40, classes), BoundaryOptions(close=close)
    )
    target = made.targets[made.found]
    assert (
        made.found.float().mean() > 0.95 * (classes - 1) / classes
    )  # all but the class that each image has
    before, after = (leads(network, kind[made.found], target) for kind in (made.before, made.after))
    assert (after.min(1) > 0).all()
    assert (before.min(1) < 0).all()
    assert (after.min(1) <= close).all()
    assert (-before.min(1) <= close).all()


def test_two_classes_are_crossed_on_the_shortest_way():
    network = random_linear(5, 2)
    images = pictures(2, 40, 90, 166)
    start = leads(network, images, torch.zeros(40).long())[:, 0]
    target = torch.from_numpy((start > 0).astype(np.int64))
    made = attack_boundaries(network, images, target[:, None])
    assert made.found.all()
    way = (made.after[:, 0].double() - images.double()).flatten(1).square().mean(1).sqrt().numpy()
    assert (way <= np.abs(start) + 2.0).all()


def test_the_deep_ones_lie_as_deep_as_asked():
    network = random_linear(7, 2)
    images = pictures(3, 30, 90, 166)
    target = torch.from_numpy(
        (leads(network, images, torch.zeros(30).long())[:, 0] > 0).astype(np.int64)
    )
    made = attack_boundaries(network, images, target[:, None], BoundaryOptions(deeper=10.0))
    assert made.found.all()
    for pair, deep, sign in ((made.before, made.deep_before, -1), (made.after, made.deep_after, 1)):
        deeper = leads(network, deep[:, 0], target) - leads(network, pair[:, 0], target)
        assert sign * deeper == pytest.approx(10.0, abs=0.5)


def test_every_sample_marked_found_holds_on_the_teacher_itself(teacher, attacked, digits):
    kinds = [attacked.before, attacked.after, attacked.deep_before, attacked.deep_after]
    with torch.no_grad():
        logits = torch.stack(
            [teacher(kind.flatten(0, 1).float() / 255).view(10, 10, 10) for kind in kinds], 2
        )
    labels = logits.argmax(3)
    target = attacked.targets[..., None]
    assert torch.equal(labels, attacked.labels)
    on_target = (labels == target)[attacked.found]
    assert torch.equal(on_target, torch.tensor([False, True, False, True]).expand_as(on_target))
    apart = (attacked.before.float() - attacked.after.float()).flatten(2).square().mean(2).sqrt()
    assert apart[attacked.found].max() <= BoundaryOptions().close
    with torch.no_grad():
        own = teacher(digits.float() / 255).argmax(1)
    missed = ~attacked.found & (own[:, None] != attacked.targets)
    assert missed.float().mean() < 0.05
    # The margin of its own decision is larger where a sample was pushed deeper.
    top = logits.topk(2).values
    margin = (top[..., 0] - top[..., 1])[attacked.found]
    assert (margin[:, 2:] > margin[:, :2]).float().mean() > 0.97


def test_good_gives_the_found_samples_with_their_labels(attacked):
    images, labels = attacked.good()
    count = int(attacked.found.sum())
    assert images.shape == (4 * count, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert torch.equal(labels.view(count, 4), attacked.labels[attacked.found])
    for place, kind in enumerate(
        (attacked.before, attacked.after, attacked.deep_before, attacked.deep_after)
    ):
        assert torch.equal(images[place::4], kind[attacked.found])


def test_the_class_an_image_has_is_no_target(monkeypatch):
    network = random_linear(1, 3)
    images = pictures(4, 30)
    own = (
        attack_boundaries(network, images, all_targets(30, 3)).found.logical_not().long().argmax(1)
    )
    asked = count_asks(monkeypatch)
    made = attack_boundaries(network, images, own[:, None])
    assert not made.found.any()
    assert (made.labels[:, :, 0] == own[:, None]).all()
    assert torch.equal(made.before[:, 0], images)
    assert sum(asked) == 30 + 60  # no step taken


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_and_targets_change_nothing(batch):
    network = random_linear(3, 4)
    images = pictures(5, 12)
    targets = all_targets(12, 4)
    made = attack_boundaries(network, images, targets, batch=batch)
    for number in range(4):
        alone = attack_boundaries(network, images, targets[:, number : number + 1])
        for field in fields(BoundarySamples):
            assert torch.equal(
                getattr(made, field.name)[:, number], getattr(alone, field.name)[:, 0]
            ), field.name


def test_targets_together_or_alone_on_the_teacher(teacher, digits, attacked):
    """Alike but for what float sums in another order change, and a walk can go another way from
    there.
    """
    alone = attack_boundaries(teacher, digits, torch.full((10, 1), 3))
    alike = (alone.after[:, 0] == attacked.after[:, 3]).flatten(1).all(1)
    assert alike.float().mean() >= 0.9
    assert torch.equal(alone.found[alike, 0], attacked.found[alike, 3])


def test_twice_the_same(teacher, digits, attacked):
    assert same(attacked, attack_boundaries(teacher, digits, all_targets(10, 10)))


def test_the_bold_driver_asks_less_than_fixed_steps(teacher, monkeypatch):
    noise = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
    )
    asked = count_asks(monkeypatch)
    counts = {}
    found = {}
    for growth in (1.2, 1.0):  # fixed steps are as long as the pair may be apart
        asked.clear()
        options = BoundaryOptions(steps=100, first_step=1.5, growth=growth, close=1.5)
        found[growth] = int(
            attack_boundaries(teacher, noise, torch.tensor([[1, 7]] * 2), options).found.sum()
        )
        counts[growth] = sum(asked)
    assert counts[1.2] < 0.8 * counts[1.0]
    assert found[1.2] >= found[1.0] > 0


def test_steps_that_jump_past_the_class_are_undone_and_halved():
    """Three classes in a row along one direction: the middle one is narrower than the first step is
    long.
    """
    weight = np.outer([-1.0, 0.0, 1.0], np.ones(PIXELS))
    network = linear(
        weight, [PIXELS * 0.48, 0.0, -PIXELS * 0.52], 20.0
    )  # the middle one is .48 to .52, ten levels wide
    images = torch.full((1, 1, SIDE, SIDE), 100, dtype=torch.uint8)
    made = attack_boundaries(
        network, images, torch.tensor([[1]]), BoundaryOptions(first_step=60.0, deeper=1.0)
    )
    assert made.found.all()
    assert made.before.unique().tolist() == [122]
    assert made.after.unique().tolist() == [123]


def test_pixels_at_the_end_of_their_range_take_no_part_in_the_step():
    """Fourteen pixels want to go where they can't; two carry the image over, and have the whole
    step to themselves.
    """
    weight = np.full(PIXELS, -1.0)
    weight[[5, 9]] = 0.1
    network = linear([np.zeros(PIXELS), weight], [0.0, -0.15], 10.0)
    images = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8)
    made = attack_boundaries(
        network, images, torch.tensor([[1]]), BoundaryOptions(steps=9, growth=1.0, deeper=2.0)
    )
    assert made.found.all()
    assert made.after.flatten()[[5, 9]].min() >= 191
    assert made.after.count_nonzero() == 2
    white = attack_boundaries(
        linear([np.zeros(PIXELS), -weight], [0.0, weight.sum() - 0.15], 10.0),
        255 - images,
        torch.tensor([[1]]),
        BoundaryOptions(steps=9, growth=1.0, deeper=2.0),
    )
    assert white.found.all()
    assert torch.equal(255 - white.after, made.after)


def test_a_way_that_ends_at_the_range_is_given_up(monkeypatch):
    asked = count_asks(monkeypatch)
    network = linear([np.zeros(PIXELS), np.full(PIXELS, -1.0)], [0.0, -1.0])
    made = attack_boundaries(
        network, torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8), torch.tensor([[1]])
    )
    assert not made.found.any()
    assert sum(asked) == 1 + 2


class Never(nn.Module):
    """Its last class has the same low logit everywhere."""

    def __init__(self, classes, low):
        super().__init__()
        self.first = nn.Linear(PIXELS, classes - 1)
        self.register_buffer("low", torch.tensor(low))

    def forward(self, images):
        return torch.cat([self.first(images.flatten(1)), self.low.expand(len(images), 1)], 1)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("low", [-torch.inf, -1e30, -1e4])
def test_a_class_out_of_reach_is_not_found(classes, low):
    torch.manual_seed(0)
    network = Classifier(Never(classes, low), ModelSpec("never", size=SIDE, classes=classes)).eval()
    images = pictures(6, 10)
    made = attack_boundaries(network, images, all_targets(10, classes))
    assert not made.found[:, -1].any()
    assert (made.labels[:, -1] < classes - 1).all()
    if classes == 3:
        assert made.found[:, :2].sum() >= 9  # the others are as before
    else:  # with no rival in sight there is no way deeper, and the image stays
        assert torch.equal(made.before[:, 0], images)


def test_a_pair_that_is_not_close_enough_is_not_found():
    """All pixels are alike, so all of them round at once: no pair is nearer than one level."""
    network = linear(np.outer([-1.0, 1.0], np.ones(PIXELS)), [PIXELS / 2, -PIXELS / 2])
    images = torch.full((1, 1, SIDE, SIDE), 100, dtype=torch.uint8)
    for close, found in ((1.0, True), (0.9, False)):
        made = attack_boundaries(network, images, torch.tensor([[1]]), BoundaryOptions(close=close))
        assert made.found.item() is found
        assert made.labels.tolist() == [[[0, 1, 0, 1]]]


def test_what_the_search_saw_is_never_taken_for_what_the_teacher_says(monkeypatch):
    """The frozen copy answers wrongly here; none of what it led to is marked as found."""
    network = random_linear(2, 3)
    images = pictures(8, 20)
    forward = Frozen.forward
    monkeypatch.setattr(Frozen, "forward", lambda self, images: forward(self, images).roll(1, 1))
    made = attack_boundaries(network, images, all_targets(20, 3))
    with torch.no_grad():
        labels = network(made.after.flatten(0, 1).float() / 255).argmax(1).view(20, 3)
    assert torch.equal(labels, made.labels[..., 1])
    assert made.found.sum() == 0


def test_a_teacher_in_training_mode_is_judged_as_it_will_be_used(teacher, digits):
    targets = all_targets(2, 10)
    expected = attack_boundaries(teacher, digits[:2], targets)
    teacher.train()
    try:
        assert same(expected, attack_boundaries(teacher, digits[:2], targets))
    finally:
        teacher.eval()
