"""Every loss on its own, against its published formula."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from formulas import (
    angle_formula,
    assert_near,
    attention_map,
    distance_formula,
    flow_matrix,
    grid,
    kl,
    mean_square,
    normal,
    one_size,
    similarity_matrix,
)

from distill.methods.attention import attention_loss
from distill.methods.boundary import soft_loss
from distill.methods.ensemble import ensemble_loss, gated, ramp
from distill.methods.fitnet import fitnet_loss
from distill.methods.fsp import fsp_loss
from distill.methods.hinton import hinton_loss
from distill.methods.hints import hint_loss, hint_loss_reference, mean_hint_loss
from distill.methods.mse import logit_loss
from distill.methods.mutual import mutual_loss
from distill.methods.relational import angle_loss, distance_loss, relational_loss
from distill.methods.shapes import averaged, averaged_reference, same_side
from distill.methods.similarity import similarity_loss

MAPS = [
    ((3, 2, 4, 4), (3, 5, 4, 4)),
    ((3, 2, 5, 7), (3, 4, 3, 3)),
    ((3, 2, 3, 2), (3, 2, 8, 5)),
    ((2, 3, 6, 2), (2, 3, 4, 5)),
]


def test_mse_is_the_mean_over_images_and_classes():
    student, teacher = normal(18, (6, 5), (6, 5))
    exact = math.fsum((student[i, k].item() - teacher[i, k].item()) ** 2 for i, k in grid(6, 5))
    assert_near(logit_loss(student, teacher), exact / 30)
    assert logit_loss(teacher, teacher) == 0


def test_gradient_of_mse_is_that_of_finite_differences():
    student, teacher = normal(19, (4, 5), (4, 5))
    leaf = student.clone().requires_grad_()
    logit_loss(leaf, teacher).backward()
    step = 1e-6
    for i, k in grid(4, 5):
        shift = torch.zeros_like(student)
        shift[i, k] = step
        above = logit_loss(student + shift, teacher).item()
        below = logit_loss(student - shift, teacher).item()
        assert_near(leaf.grad[i, k], (above - below) / (2 * step), 1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_hinton_is_kl_times_the_temperature_squared(temperature):
    student, teacher, weights = normal(0, (6, 5), (6, 5), (6,))
    exact = temperature**2 * kl(3 * teacher, 3 * student, temperature)
    assert_near(hinton_loss(3 * student, 3 * teacher, temperature), exact.mean())
    assert_near(
        hinton_loss(3 * student, 3 * teacher, temperature, weights),
        (exact * weights.numpy()).mean(),
    )


@pytest.mark.parametrize("shapes", MAPS)
def test_maps_of_two_sizes_meet_at_the_smaller(shapes):
    maps = normal(1, *shapes)
    for ours, exact in zip(same_side(*maps), one_size(*maps), strict=True):
        assert_near(ours, exact)


@pytest.mark.parametrize(
    "shapes",
    [((3, 2, 4, 4), (3, 2, 4, 4)), ((3, 2, 7, 5), (3, 2, 3, 3)), ((2, 4, 6, 2), (2, 4, 4, 5))],
)
def test_fitnet_is_the_mean_square(shapes):
    student, teacher = normal(2, *shapes)
    assert_near(fitnet_loss(student, teacher), mean_square(*one_size(student, teacher)))


@pytest.mark.parametrize(
    "shapes",
    [((3, 2, 4, 4), (3, 2, 4, 4)), ((3, 2, 7, 5), (3, 2, 3, 3)), ((2, 4, 6, 2), (2, 4, 4, 5))],
)
def test_hints_are_the_share_of_the_variance_left_unexplained(shapes):
    student, teacher = normal(2, *shapes)
    ours, theirs = one_size(student, teacher)
    means = np.stack(
        [np.full_like(theirs[:, c], theirs[:, c].mean()) for c in range(theirs.shape[1])], 1
    )
    assert_near(
        hint_loss(student, teacher), ((ours - theirs) ** 2).sum() / ((theirs - means) ** 2).sum()
    )
    assert_near(hint_loss(7 * student - 3, 7 * teacher - 3), hint_loss(student, teacher))
    assert_near(hint_loss(torch.from_numpy(means), torch.from_numpy(theirs)), 1.0)


def test_a_layer_that_never_changes_gives_no_hints():
    student = normal(4, (3, 2, 4, 4)).requires_grad_()
    for constant in (0.0, 1.0, 1e6):
        loss = hint_loss(student, torch.full((3, 2, 4, 4), constant, dtype=torch.double))
        assert loss == 0 and torch.autograd.grad(loss, student)[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hints_of_all_layers_at_once_are_those_of_each(dtype):
    """Whatever type the teacher's maps are stored in, and whatever their shapes."""
    shapes = [(3, 4, 8, 8), (3, 7, 2, 3), (3, 5, 1, 1)]
    students = [one.float().requires_grad_() for one in normal(5, *shapes)]
    teachers = [one.to(dtype) for one in normal(6, (3, 4, 8, 8), (3, 7, 4, 6), (3, 5, 1, 1))]
    teachers[2] += 300.0
    pairs = list(zip(students, teachers, strict=True))
    ours = mean_hint_loss(pairs)
    exact = sum(hint_loss_reference(one, other.float()) for one, other in pairs) / 3
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=0)
    found = torch.autograd.grad(3 * ours, students)
    for one, other in zip(found, torch.autograd.grad(3 * exact, students), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)


def test_the_gradient_of_hints_is_that_of_finite_differences():
    students = [one.requires_grad_() for one in normal(7, (2, 3, 4, 4), (2, 2, 1, 1))]
    teachers = normal(8, (2, 3, 4, 4), (2, 2, 2, 2))
    loss = lambda *maps: mean_hint_loss(list(zip(maps, teachers, strict=True)))  # noqa: E731
    assert torch.autograd.gradcheck(loss, students)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [(4, 4), (8, 3), (2, 1), (1, 6), (3, 5)])
def test_maps_are_averaged_as_by_definition(dtype, layout, side):
    maps = normal(9, (2, 3, 8, 6))
    maps = maps.to(dtype).contiguous(memory_format=layout).requires_grad_()
    ours, exact = averaged(maps, *side), averaged_reference(maps, *side)
    assert ours.dtype is torch.float32
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)
    weights = torch.rand(ours.shape)
    found, expected = (torch.autograd.grad((y * weights).sum(), maps)[0] for y in (ours, exact))
    assert found.dtype is dtype
    near = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, rtol=near, atol=1e-6)


@pytest.mark.parametrize("shapes", MAPS)
def test_attention_compares_normalised_energy(shapes):
    student, teacher = normal(3, *shapes)
    ours, theirs = one_size(student, teacher)
    assert_near(
        attention_loss(student, teacher), mean_square(attention_map(ours), attention_map(theirs))
    )


@pytest.mark.parametrize("sides", [((4, 4), (4, 4)), ((6, 5), (3, 2)), ((2, 5), (4, 3))])
def test_fsp_compares_flow_matrices(sides):
    first, second = sides
    student = normal(4, (3, 2, *first), (3, 4, *second))
    teacher = normal(5, (3, 2, 4, 4), (3, 4, 2, 2))
    assert_near(
        fsp_loss(student, teacher), mean_square(flow_matrix(*student), flow_matrix(*teacher))
    )


def test_similarity_compares_normalised_grams():
    student, teacher = normal(6, (5, 2, 3, 3), (5, 4, 2, 2))
    assert_near(
        similarity_loss(student, teacher),
        mean_square(similarity_matrix(student), similarity_matrix(teacher)),
    )


@pytest.mark.parametrize(
    "spread", [1.0, 20.0]
)  # with 20, some gaps leave the square part of smooth L1
def test_relational_losses_compare_distances_and_angles(spread):
    student, teacher = normal(7, (6, 3), (6, 4))
    student[0] *= spread
    distance, angle = distance_formula(student, teacher), angle_formula(student, teacher)
    assert_near(distance_loss(student, teacher), distance)
    assert_near(angle_loss(student, teacher), angle)
    assert_near(relational_loss(student, teacher), 25 * distance + 50 * angle)


def test_equal_images_have_no_distance_and_no_angle():
    student, teacher = normal(8, (5, 3), (5, 4))
    student[3] = student[1]
    assert_near(distance_loss(student, teacher), distance_formula(student, teacher))
    assert_near(angle_loss(student, teacher), angle_formula(student, teacher))


def test_soft_loss_is_kl_at_three():
    student, teacher = normal(9, (6, 5), (6, 5))
    assert_near(soft_loss(student, teacher), kl(teacher, student, 3.0))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_peers_learn_from_the_mean_of_the_others(count):
    peers = normal(10, *[(4, 5)] * count)
    exact = sum(
        np.mean([kl(peers[j], peers[i]).mean() for j in range(count) if j != i])
        for i in range(count)
    )
    assert_near(mutual_loss(peers), exact)


@pytest.mark.parametrize("count", [2, 3])
def test_branches_learn_from_their_gated_sum(count):
    *branches, gates = normal(11, *[(4, 5)] * count, (4, count))
    gates = gates.softmax(1)
    ensemble = np.zeros((4, 5))
    for image, label, branch in product(range(4), range(5), range(count)):
        ensemble[image, label] += (
            gates[image, branch].item() * branches[branch][image, label].item()
        )
    assert_near(gated(branches, gates), ensemble)
    assert_near(
        ensemble_loss(branches, gated(branches, gates)),
        sum(9 * kl(ensemble, each, 3.0).mean() for each in branches),
    )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.39, 0.4, 0.41, 1.0])
def test_the_ramp_reaches_one_at_two_fifths(share):
    exact = math.exp(-5 * (1 - min(share / 0.4, 1)) ** 2)
    assert_near(ramp(torch.tensor(share, dtype=torch.double)), exact)
    assert share < 0.4 or exact == 1
