"""Where losses vanish, their gradients, and what they are blind to."""

import numpy as np
import pytest
import torch
from formulas import assert_near, few, kl, normal, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from distill.methods.attention import attention_loss
from distill.methods.boundary import soft_loss
from distill.methods.ensemble import ensemble_loss, gated
from distill.methods.fitnet import fitnet_loss
from distill.methods.fsp import fsp_loss
from distill.methods.hinton import hinton_loss
from distill.methods.hints import hint_loss
from distill.methods.mse import logit_loss
from distill.methods.mutual import mutual_loss
from distill.methods.relational import angle_loss, distance_loss, relational_loss
from distill.methods.similarity import similarity_loss

ON_EMBEDDINGS = [distance_loss, angle_loss, relational_loss]
ON_PAIRS = {
    "hinton": (lambda student, teacher: hinton_loss(student, teacher, 4.0), (4, 5)),
    "mse": (logit_loss, (4, 5)),
    "soft": (lambda student, teacher: soft_loss(student, teacher), (4, 5)),
    "fitnet": (fitnet_loss, (3, 2, 4, 4)),
    "hints": (hint_loss, (3, 2, 4, 4)),
    "at": (attention_loss, (3, 2, 4, 4)),
    "sp": (similarity_loss, (4, 2, 3, 3)),
    "distance": (distance_loss, (5, 3)),
    "angle": (angle_loss, (5, 3)),
    "relational": (relational_loss, (5, 3)),
}


def rotation(seed, size):
    return torch.linalg.qr(normal(seed, (size, size)))[0]


def shuffle(seed, size):
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def assert_finite_gradient(loss, student, teacher):
    student = student.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(student, teacher), student)
    assert slope.abs().max() < 100


def slopes(function, point, step=1e-6):
    """Central differences."""
    found = np.zeros(point.shape)
    for place in np.ndindex(point.shape):
        above, below = point.clone(), point.clone()
        above[place] += step
        below[place] -= step
        found[place] = (function(above) - function(below)) / (2 * step)
    return found


# Where they vanish, and their gradients


@pytest.mark.parametrize("name", ON_PAIRS)
def test_nothing_is_lost_at_the_teacher(name):
    loss, shape = ON_PAIRS[name]
    teacher = normal(12, shape)
    student = teacher.clone().requires_grad_()
    assert loss(student, teacher).abs().max() < 1e-15
    (slope,) = torch.autograd.grad(loss(student, teacher).sum(), student)
    assert slope.abs().max() < 1e-12
    assert loss(teacher + normal(13, shape), teacher).min() > 1e-6


def test_nothing_is_lost_where_all_agree():
    first, second, gates = normal(14, (3, 2, 4, 4), (3, 5, 2, 2), (3, 3))
    logits = normal(15, (3, 6))
    assert fsp_loss((first, second), (first.clone(), second.clone())) == 0
    copies = [logits.clone() for _ in range(3)]
    assert abs(mutual_loss(copies)) < 1e-15
    assert abs(ensemble_loss(copies, gated(copies, gates.softmax(1)))) < 1e-14


@pytest.mark.parametrize("name", ON_PAIRS)
def test_gradient_of_a_loss_between_two(name):
    loss, shape = ON_PAIRS[name]
    student, teacher = normal(16, shape, shape)
    assert gradcheck(lambda student: loss(student, teacher), (student.requires_grad_(),))


@pytest.mark.parametrize("loss", [fitnet_loss, hint_loss, attention_loss])
@pytest.mark.parametrize("shapes", [((2, 2, 5, 3), (2, 2, 2, 2)), ((2, 2, 2, 2), (2, 2, 5, 3))])
def test_gradient_goes_through_the_averaging(loss, shapes):
    student, teacher = normal(17, *shapes)
    assert gradcheck(lambda student: loss(student, teacher), (student.requires_grad_(),))


def test_gradient_of_fsp_reaches_both_stages():
    first, second, one, two = normal(18, (2, 2, 4, 4), (2, 3, 2, 2), (2, 2, 4, 4), (2, 3, 2, 2))
    stages = (first.requires_grad_(), second.requires_grad_())
    assert gradcheck(lambda first, second: fsp_loss((first, second), (one, two)), stages)


def test_a_peer_learns_only_as_the_one_who_learns():
    peers = normal(19, *[(3, 4)] * 3)
    leaves = [peer.clone().requires_grad_() for peer in peers]
    found = torch.autograd.grad(mutual_loss(leaves), leaves)
    for i, slope in enumerate(found):
        others = [peer for j, peer in enumerate(peers) if j != i]
        exact = slopes(
            lambda own, others=others: np.mean([kl(other, own).mean() for other in others]),
            peers[i],
        )
        assert_near(slope, exact, 1e-6)


def test_branches_learn_from_the_ensemble_but_not_it_from_them():
    branches, gates = normal(20, (3, 4), (3, 4)), normal(21, (3, 2)).softmax(1).requires_grad_()
    ensemble = gated(branches, gates)
    leaves = [branch.clone().requires_grad_() for branch in branches]
    assert gradcheck(lambda *branches: ensemble_loss(branches, ensemble), leaves)
    (slope,) = torch.autograd.grad(ensemble_loss(leaves, ensemble), gates, allow_unused=True)
    assert slope is None


def test_gradient_of_the_gates():
    first, second, gates = normal(22, (3, 4), (3, 4), (3, 2))
    leaves = [each.requires_grad_() for each in (first, second, gates)]
    assert gradcheck(lambda first, second, gates: gated([first, second], gates), leaves)


@pytest.mark.parametrize("loss", ON_EMBEDDINGS)
@pytest.mark.parametrize("precision", [torch.float, torch.double])
def test_equal_embeddings_keep_the_gradient_finite(loss, precision):
    student, teacher = (each.to(precision) for each in normal(23, (5, 3), (5, 3)))
    student[3] = student[1]
    assert_finite_gradient(loss, student, teacher)
    assert_finite_gradient(loss, student, student)
    assert_finite_gradient(loss, torch.ones_like(student), teacher)


@pytest.mark.parametrize("loss", [attention_loss, similarity_loss])
@pytest.mark.parametrize("precision", [torch.float, torch.double])
def test_zero_features_keep_the_gradient_finite(loss, precision):
    teacher = normal(24, (4, 2, 3, 3)).to(precision)
    assert_finite_gradient(loss, torch.zeros_like(teacher), teacher)
    assert_finite_gradient(loss, teacher, torch.zeros_like(teacher))
    one_dead = teacher.flip(0)
    one_dead[2] = 0
    assert_finite_gradient(loss, one_dead, teacher)


# What they are blind to


@few
@given(seeds, st.floats(0.01, 100), st.floats(0.01, 100))
def test_attention_is_blind_to_scale_and_channel_order(seed, ours, theirs):
    student, teacher = normal(seed, (3, 4, 3, 3), (3, 5, 3, 3))
    changed = attention_loss(
        ours * student[:, shuffle(seed, 4)], theirs * teacher[:, shuffle(seed + 1, 5)]
    )
    assert_near(changed, attention_loss(student, teacher), 1e-8)


@few
@given(seeds)
def test_fsp_is_blind_to_pixel_order(seed):
    first, second, *teacher = normal(seed, (2, 2, 3, 4), (2, 3, 3, 4), (2, 2, 3, 4), (2, 3, 3, 4))
    order = shuffle(seed, 12)
    moved = [maps.flatten(2)[:, :, order].unflatten(2, (3, 4)) for maps in (first, second)]
    assert_near(fsp_loss(moved, teacher), fsp_loss((first, second), teacher), 1e-8)


@few
@given(seeds)
def test_similarity_and_relations_are_blind_to_rotation(seed):
    student, teacher = normal(seed, (5, 6), (5, 4))
    turned = student @ rotation(seed + 1, 6)
    for loss in (similarity_loss, *ON_EMBEDDINGS):
        assert_near(loss(turned, teacher), loss(student, teacher), 1e-8)


@few
@given(seeds, st.floats(0.01, 100))
def test_distances_are_blind_to_shift_and_scale(seed, scale):
    student, teacher, shift = normal(seed, (5, 6), (5, 4), (6,))
    assert_near(
        distance_loss(scale * (student + 3 * shift), teacher), distance_loss(student, teacher), 1e-8
    )


@few
@given(seeds)
def test_divergences_are_blind_to_constants(seed):
    first, second, third, constants = normal(seed, (4, 5), (4, 5), (4, 5), (4, 3))
    peers = [first, second, third]
    raised = [
        logits + 10 * constant[:, None]
        for logits, constant in zip(peers, constants.unbind(1), strict=True)
    ]
    assert_near(hinton_loss(raised[0], raised[1], 4.0), hinton_loss(first, second, 4.0), 1e-8)
    assert_near(mutual_loss(raised), mutual_loss(peers), 1e-8)
