"""Divergence, alone, of a mean and of decisions, in every form, against its definition."""

import numpy as np
import pytest
import torch
from conftest import needs_native
from forms import FEW, LAYOUTS, assert_near
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from synthesis_kernels.backend import kernel_form
from synthesis_kernels.divergence import (
    adversarial_divergence,
    compare,
    compare_reference,
    divergence,
    divergence_reference,
    mean_divergence,
    mean_divergence_reference,
    same_decision,
)
from synthesis_kernels.errors import EchosetError


def divergence_oracle(teacher, student, temperature):
    def softmax(z):
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return (p * np.log(p / q)).sum(1) * temperature**2


@given(classes=st.integers(1, 6), temperature=st.floats(0.5, 20, width=32), seed=st.integers(0, 99))
@FEW
def test_divergence_equals_a_numpy_oracle(device, classes, temperature, seed):
    teacher, student = np.random.default_rng(seed).normal(size=(2, 5, classes)) * 4
    ours = divergence(
        torch.from_numpy(teacher).to(device),
        torch.from_numpy(student).to(device),
        temperature,
    )
    expected = divergence_oracle(teacher, student, temperature)
    np.testing.assert_allclose(ours.cpu().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 2)], ids=str)
def test_divergence_gradient_by_finite_differences(device, shape):
    logits = [
        torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2)
    ]
    assert gradcheck(lambda t, s: divergence(t, s, 2.0), logits)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(9, 10), (3, 7, 4, 5), (2, 100, 3)], ids=str)
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=["float32", "bfloat16"]
)
def test_divergence_of_any_layout(device, shape, layout, dtype, tolerance):
    teacher, student = (3 * torch.randn(2, *shape, device=device)).to(dtype)
    student = LAYOUTS[layout](student)
    weights = torch.randn(shape[0], *shape[2:])

    def run(function, *logits):
        logits = [z.detach().requires_grad_() for z in logits]
        value = function(*logits, 1.5)
        return value, *torch.autograd.grad(
            (value.double() * weights.to(value.device)).sum(), logits
        )

    ours = run(divergence, teacher, student)
    for value, exact in zip(
        ours, run(divergence_reference, teacher.double().cpu(), student.double().cpu()), strict=True
    ):
        assert value.dtype is dtype
        assert_near(value, exact, tolerance)


def test_divergence_at_the_ends(device):
    teacher = torch.randn(2, 3, 2, 2, dtype=torch.float64, device=device)
    assert (
        divergence(teacher, teacher + 5, 2.0).abs().max() < 1e-12
    )  # a shift of all logits changes nothing
    certain = torch.tensor([[1e4, 0.0], [0.0, 1e4]], device=device, requires_grad=True)
    value = divergence(certain, certain.flip(1))
    assert (
        torch.isfinite(value).all()
        and torch.isfinite(torch.autograd.grad(value.sum(), certain)[0]).all()
    )


def test_divergence_refuses_what_it_cannot_compare():
    with pytest.raises(EchosetError, match="different shapes"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(EchosetError, match="different shapes"):
        compare(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(EchosetError, match="2 images have weights of shape"):
        mean_divergence(torch.zeros(2, 3), torch.zeros(2, 3), 1.0, torch.ones(3))


@pytest.mark.parametrize("shape", [(9, 10), (5, 100), (3, 7, 4, 5), (2, 3, 19)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("weighed", [False, True])
def test_mean_divergence_equals_its_definition(device, shape, layout, weighed):
    """Alone, and as a part of a larger loss."""
    teacher, student = 3 * torch.randn(2, *shape, device=device)
    logits = [teacher.requires_grad_(), LAYOUTS[layout](student).detach().requires_grad_()]
    weights = torch.rand(shape[0], device=device) if weighed else None
    ours = mean_divergence(*logits, 4.0, weights)
    exact = mean_divergence_reference(*logits, 4.0, weights)
    assert_near(ours, exact, 1e-5)
    for wanted in (logits, logits[1:]):
        found = torch.autograd.grad(3 * ours, wanted, retain_graph=True)
        expected = torch.autograd.grad(3 * exact, wanted, retain_graph=True)
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, 1e-5)
    single = [z.detach()[:4].double().requires_grad_() for z in logits]
    few = None if weights is None else weights[:4].double()
    assert gradcheck(lambda t, s: mean_divergence(t, s, 2.0, few), single, fast_mode=True)


@pytest.mark.parametrize("shape", [(9, 10), (5, 100), (3, 7, 4, 5), (2, 3, 19)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_comparing_equals_its_definition(device, shape, layout):
    teacher = 3 * torch.randn(shape, device=device)
    student = LAYOUTS[layout](teacher + 2 * torch.randn(shape, device=device))
    apart, alike = compare(teacher, student)
    expected_apart, expected_alike = compare_reference(teacher, student)
    assert 0 < alike.mean() < 1
    assert_near(apart, expected_apart, 1e-5)
    torch.testing.assert_close(alike, expected_alike)


def test_of_equal_logits_the_first_decides(device):
    teacher = torch.tensor([[1.0, 2, 2, 0], [1, 1, 1, 1], [0, 0, 5, 5]], device=device)
    student = torch.tensor([[0.0, 3, 0, 3], [0, 0, 0, 1], [0, 0, 0, 5]], device=device)
    assert compare(teacher, student)[1].tolist() == [1, 0, 0]
    planes = teacher.T[None, :, :, None], student.T[None, :, :, None]
    torch.testing.assert_close(compare(*planes)[1].cpu(), torch.tensor([1 / 3]))


@pytest.mark.parametrize("shape", [(30, 10), (3, 7, 4, 5)], ids=str)
def test_adversarial_divergence_equals_its_definition(device, shape):
    logits = [torch.randn(shape, dtype=torch.float64, device=device) for _ in range(2)]
    teacher, student = [z.requires_grad_() for z in logits]
    weights = torch.randn(shape[0], *shape[2:], device=device)
    ours = adversarial_divergence(teacher, student)
    exact = divergence_reference(teacher, student) * same_decision(teacher, student)
    torch.testing.assert_close(ours, exact)
    found = torch.autograd.grad((ours * weights).sum(), [teacher, student])
    expected = torch.autograd.grad((exact * weights).sum(), [teacher, student])
    torch.testing.assert_close(found, expected)


@needs_native
def test_threads_share_the_native_divergence():
    teacher, student = torch.randn(2, 6, 21, 17, 13)
    teacher.requires_grad_()
    before, values = torch.get_num_threads(), []
    try:
        with kernel_form("native"):
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                loss = mean_divergence(teacher, student, 4.0)
                values.append((loss, *torch.autograd.grad(loss, teacher)))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in values:
        assert torch.equal(loss, values[0][0]) and torch.equal(gradient, values[0][1])


def test_the_adversary_has_nothing_to_gain_where_decisions_differ(device):
    teacher = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]], device=device)
    student = torch.tensor([[1.0, 0.0, 0.5], [2.0, 0.0, 1.0]], device=device, requires_grad=True)
    assert same_decision(teacher, student).tolist() == [True, False]
    value = adversarial_divergence(teacher, student)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    torch.testing.assert_close(value[0], divergence_reference(teacher, student.detach())[0])
    assert value[1] == 0 and (gradient[1] == 0).all() and (gradient[0] != 0).all()
