import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from synthesis_kernels.backend import resolve_device, resolve_precision
from synthesis_kernels.bn_match import batch_moments, batch_moments_reference, moment_distance
from synthesis_kernels.divergence import kl_divergence, same_decision
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.priority import draw, draw_chances, importance_weights

SHAPES = st.tuples(st.integers(2, 5), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))


@given(SHAPES, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_moments_equal_their_definition(shape, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 1
    centre = torch.randn(shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for ours, theirs in zip(batch_moments(x, centre), batch_moments_reference(x, centre), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 5, 4), (2, 1, 1, 1)])
def test_moments_gradient_by_finite_differences(shape):
    x = torch.randn(shape, dtype=torch.float64).transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()  # strided
    centre = torch.randn(shape[1], dtype=torch.float64)
    assert gradcheck(lambda x: batch_moments(x, centre), x)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_moments_gradient_with_uneven_upstream_gradient(dtype, tolerance):
    x = (torch.randn(8, 5, 6, 7) * 2 + 3).to(dtype).requires_grad_()
    reference = x.detach().clone().requires_grad_()
    weights = torch.randn(2, 5)
    for tensor, function in ((x, batch_moments), (reference, batch_moments_reference)):
        mean, variance = function(tensor, torch.full((5,), 2.5))
        ((mean * weights[0]).sum() + (variance * weights[1]).sum()).backward()
    assert (x.grad - reference.grad).norm() <= tolerance * reference.grad.norm()


def test_moments_survive_a_mean_far_larger_than_the_deviation():
    x = 1000 + 0.01 * torch.randn(64, 3, 8, 8)
    exact = x.double().var(dim=(0, 2, 3), correction=0)
    _, variance = batch_moments(x, torch.full((3,), 1000.0))
    torch.testing.assert_close(variance.double(), exact, rtol=1e-3, atol=0)


def test_moment_distance_is_zero_only_at_the_running_statistics():
    mean, variance = torch.randn(4), torch.rand(4)
    assert moment_distance(mean, variance, mean, variance) == 0
    assert torch.isclose(moment_distance(mean + 1, variance, mean, variance), torch.tensor(2.0))  # ‖(1,1,1,1)‖₂


@given(st.integers(2, 6), st.floats(0.5, 20), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_kl_equals_a_numpy_oracle(classes, temperature, seed):
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(size=(2, 5, classes)) * 4

    def softmax(z):
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = (p * np.log(p / q)).sum(1) * temperature**2
    ours = kl_divergence(torch.from_numpy(teacher), torch.from_numpy(student), temperature)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_kl_gradient_dense_shapes_and_zero_at_agreement():
    teacher = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda t, s: kl_divergence(t, s, 2.0), (teacher, student))
    assert kl_divergence(teacher, teacher + 5).abs().max() < 1e-12  # a shift of all logits changes nothing
    assert same_decision(teacher, teacher).shape == (2, 2, 2)


def test_kl_stays_finite_for_certain_answers():
    certain = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert torch.isfinite(kl_divergence(certain, certain.flip(1))).all()


def test_draws_follow_the_chances_and_weights_undo_them():
    priority = torch.tensor([0.0, 1.0, 4.0, 9.0, 100.0])
    allowed = torch.tensor([True, True, True, True, False])
    chances = draw_chances(priority, 0.5, allowed, floor=0.0)
    torch.testing.assert_close(chances, torch.tensor([0, 1, 2, 3, 0]) / 6.0)
    drawn = draw(chances, 60_000, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=5) / len(drawn)
    torch.testing.assert_close(share, chances, atol=0.01, rtol=0)
    # With β = 1 the weighted average of any value is the plain average over what can be drawn.
    value = torch.tensor([9.0, 2.0, 4.0, 6.0, 9.0])
    weights = importance_weights(chances, drawn, beta=1.0)
    assert abs((weights * value[drawn]).sum() / weights.sum() - 4.0) < 0.05
    assert weights.max() == 1


def test_exponent_zero_is_uniform():
    torch.testing.assert_close(draw_chances(torch.tensor([0.0, 5.0, 50.0]), 0.0), torch.full((3,), 1 / 3))


def test_a_device_asked_for_by_name_must_exist():
    if torch.cuda.is_available():
        assert resolve_device("cuda").type == "cuda"
    else:
        with pytest.raises(EchosetError, match="no CUDA device"):
            resolve_device("cuda")
    assert resolve_precision(torch.device("cpu"), "float32") is torch.float32
