"""Pushes over a network's boundaries, and how alike two networks' boundaries are."""

import math

import numpy as np
import pytest
import torch
from test_evaluation import normal

from distill import load_images
from distill.boundaries import (
    PUSHES,
    Similarity,
    Transfer,
    adversarial_transfer,
    boundary_similarity,
)
from distill.methods.boundary import SLACK, push_over
from inversion import MNIST_SLICE

SHAPE = (1, 2, 3)


class Linear:
    """z = scale·(Wx + b), with W and b at hand; remembers what it was asked."""

    def __init__(self, seed, classes=4, scale=1.0):
        weight, bias = (
            normal(seed, classes, math.prod(SHAPE)) * scale,
            0.1 * normal(seed + 100, classes) * scale,
        )
        self.parts, self.asked = (weight, bias), []
        self.weight, self.bias = weight.double().numpy(), bias.double().numpy()

    def __call__(self, images):
        self.asked.append(images.detach().clone())
        return images.flatten(1) @ self.parts[0].T + self.parts[1]


def unit_images(seed, count=40):
    return torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(seed))


def test_a_push_in_a_linear_network_is_the_distance_and_two_percent_more():
    network, images = Linear(0), unit_images(0)
    base = network(images).argmax(1)
    target = (base + 1) % 4
    pushed, crossed = push_over(network, images, base, target, None, PUSHES)
    flat, w, b = images.flatten(1).double().numpy(), network.weight, network.bias
    slope = w[target] - w[base]
    gap = (flat * slope).sum(1) + b[target] - b[base]
    expected = 1.02 * ((SLACK - gap) / (slope**2).sum(1))[:, None] * slope
    assert crossed.all() and (gap < 0).all()
    np.testing.assert_allclose((pushed - images).flatten(1).numpy(), expected, rtol=1e-3, atol=1e-5)


def exact_similarity(one, other, images):
    """Both measures from the distance vectors of two linear networks."""
    flat = images.flatten(1).double().numpy()
    answers = [flat @ n.weight.T + n.bias for n in (one, other)]
    ratios, cosines = [], []
    for i in range(len(flat)):
        base = answers[0][i].argmax()
        if base != answers[1][i].argmax():
            continue
        for target in set(range(4)) - {base}:
            vectors = []
            for n, z in zip((one, other), answers, strict=True):
                slope = n.weight[target] - n.weight[base]
                vectors.append(1.02 * (z[i, base] - z[i, target] + SLACK) / (slope @ slope) * slope)
            lengths = [math.sqrt(v @ v) for v in vectors]
            ratios.append(min(lengths) / max(lengths))
            cosines.append(vectors[0] @ vectors[1] / math.prod(lengths))
    return np.mean(ratios), np.mean(cosines), len(ratios)


@pytest.mark.parametrize("seed", range(3))
def test_boundary_similarity_of_two_linear_networks(seed):
    one, other, images = Linear(seed), Linear(seed + 10), unit_images(seed)
    found, (magnitude, angle, pairs) = (
        boundary_similarity(one, other, images),
        exact_similarity(one, other, images),
    )
    assert found.boundary_pairs == pairs > 0
    assert found.magnitude_similarity == pytest.approx(magnitude, abs=1e-3)
    assert found.angle_similarity == pytest.approx(angle, abs=1e-3)


def test_boundary_similarity_knows_no_scale_of_logits():
    one, other, large, images = Linear(1), Linear(11), Linear(11, scale=10), unit_images(1)
    found, scaled, swapped = (
        boundary_similarity(*pair, images) for pair in ((one, other), (one, large), (other, one))
    )
    for name in ("magnitude_similarity", "angle_similarity"):
        value = getattr(found, name)
        assert getattr(scaled, name) == pytest.approx(value, abs=2e-3)
        assert getattr(swapped, name) == pytest.approx(value, abs=1e-6)
    itself = boundary_similarity(other, large, images)
    assert itself.magnitude_similarity == pytest.approx(1, abs=1e-2)
    assert itself.angle_similarity == pytest.approx(1, abs=1e-5)


def test_a_network_has_its_own_boundaries(teacher):
    images = load_images(MNIST_SLICE).images[:4].float() / 255
    for network, some, classes in ((Linear(2), unit_images(2), 4), (teacher, images, 10)):
        found = boundary_similarity(network, network, some)
        assert found.magnitude_similarity == pytest.approx(1, abs=1e-5)
        assert found.angle_similarity == pytest.approx(1, abs=1e-5)
        assert 0 < found.boundary_pairs <= len(some) * (classes - 1)


def test_only_boundaries_that_both_can_reach_are_compared():
    one, images = Linear(6), unit_images(6)

    def walled(batch):  # the last class is never the likeliest
        answers = one(batch)[:, :3]
        return torch.cat([answers, answers.amin(1, keepdim=True) - 1], 1)

    agreed = one(images).argmax(1) < 3
    for pair in ((one, walled), (walled, one)):
        found = boundary_similarity(*pair, images)
        assert found.boundary_pairs == 2 * agreed.sum() > 0
        assert found.magnitude_similarity == pytest.approx(1, abs=1e-5)


def test_networks_that_never_agree_have_no_similarity():
    images, one, never = unit_images(3), Linear(3, 2), Linear(3, 2, scale=-1)
    found = boundary_similarity(one, never, images)
    assert found == Similarity(0)
    nothing = adversarial_transfer(never, one, images, one(images).argmax(1))
    assert nothing == Transfer()


def test_the_attack_stays_within_its_bounds():
    network, recorder, images = Linear(4, 2), Linear(4, 2), unit_images(4)
    images[:5], images[5:10] = 0, 1
    labels = network(images).argmax(1)
    found = adversarial_transfer(network, recorder, images, labels)
    assert found.transfer == found.transfer_teacher
    assert all(
        (batch - images).abs().max() <= 0.031 + 1e-6 and batch.min() >= 0 and batch.max() <= 1
        for batch in recorder.asked
    )
    # Towards the other of two classes a linear network's slope never turns: after 20 steps of .003
    # every pixel is at the bound.
    slope = torch.from_numpy(network.weight)[1 - labels] - torch.from_numpy(network.weight)[labels]
    expected = (images + 0.031 * slope.sign().view_as(images)).clamp(0, 1).float()
    torch.testing.assert_close(recorder.asked[-1], expected)
    assert found.transfer == pytest.approx(
        (network(expected).argmax(1) != labels).float().mean().item()
    )


def test_only_images_that_both_know_are_attacked():
    teacher, student, recorder, images = Linear(5), Linear(15), Linear(5), unit_images(5)
    labels = teacher(images).argmax(1)
    labels[::3] = (labels[::3] + 1) % 4  # which the teacher gets wrong
    adversarial_transfer(student, recorder, images, labels)
    known = (student(images).argmax(1) == labels) & (teacher(images).argmax(1) == labels)
    assert 0 < known.sum() < len(images) and torch.equal(recorder.asked[1], images[known])
