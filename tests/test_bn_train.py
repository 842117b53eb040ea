"""A BatchNorm in training with what follows it, in every form, against torch's own."""

import pytest
import torch
from forms import LAYOUTS, assert_near
from torch.autograd import gradcheck, gradgradcheck

from synthesis_kernels.bn_train import bn_train, bn_train_reference, bn_train_sum


def inputs(shape, dtype=torch.float32, device="cpu", adds=False):
    """x, weight, bias, running mean and variance, and perhaps a residual."""
    torch.manual_seed(0)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    channels = shape[1]
    x = torch.randn(shape) * 2 + 3 * torch.randn(1, channels, *[1] * (len(shape) - 2))
    vectors = [torch.randn(channels, dtype=wide) for _ in range(3)]
    vectors.append(torch.rand(channels, dtype=wide) + 0.5)
    residual = torch.randn(shape).to(dtype) if adds else None
    given = [x.to(dtype), *vectors, residual]
    return [None if one is None else one.to(device) for one in given]


def everything(function, given, slope, weights):
    """The output, what moved, and the gradients."""
    x, weight, bias, mean, variance, residual = [
        None if one is None else one.detach() for one in given
    ]
    mean, variance = mean.clone(), variance.clone()
    batches = torch.zeros((), dtype=torch.int64, device=x.device)
    followed = [one.requires_grad_() for one in (x, weight, bias, residual) if one is not None]
    y = function(x, weight, bias, mean, variance, 0.1, 1e-5, slope, residual, batches)
    gradients = torch.autograd.grad((y.double() * weights.to(x.device)).sum(), followed)
    assert batches == 1
    return [y, mean, variance, *gradients]


def in_double(given, slope, weights):
    wide = [None if one is None else one.detach().double().cpu() for one in given]
    return everything(bn_train_reference, wide, slope, weights)


@pytest.mark.parametrize(
    "slope, adds", [(0.0, False), (0.0, True), (0.2, False), (None, False), (None, True)]
)
@pytest.mark.parametrize(
    "shape, layout",
    [
        ((300, 17), "contiguous"),
        ((3, 48, 5, 7), "channels_last"),
        ((3, 48, 5, 7), "expanded"),
        ((2, 2, 3, 2, 3), "contiguous"),
    ],
    ids=str,
)
def test_it_equals_torch(device, shape, adds, layout, slope):
    given = inputs(shape, device=device, adds=adds)
    given[0] = LAYOUTS[layout](given[0])
    weights = torch.randn(shape, dtype=torch.float64)
    ours, exact = everything(bn_train, given, slope, weights), in_double(given, slope, weights)
    for value, expected in zip(ours, exact, strict=True):
        assert_near(value, expected, 2e-5)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_of_bfloat16_it_equals_torch(device, slope, adds):
    given = inputs((6, 20, 5, 7), torch.bfloat16, device, adds)
    weights = torch.randn(6, 20, 5, 7, dtype=torch.float64)
    ours, exact = everything(bn_train, given, slope, weights), in_double(given, slope, weights)
    assert ours[0].dtype is torch.bfloat16 and ours[1].dtype is torch.float32
    # The definition rounds before it adds, so its ReLU cuts elsewhere now and then.
    rough = 5e-2 if adds else 1e-2
    tolerances = [1e-2, 1e-5, 1e-5, rough, rough, rough, rough]
    for value, expected, tolerance in zip(ours, exact, tolerances[: len(ours)], strict=True):
        assert_near(value, expected, tolerance)


@pytest.mark.parametrize("slope, adds", [(0.0, True), (0.2, False), (None, False)])
def test_gradient_by_finite_differences(device, slope, adds):
    x, weight, bias, mean, variance, residual = inputs((2, 3, 2, 2), torch.float64, device, adds)
    followed = [one.requires_grad_() for one in (x, weight, bias, residual) if one is not None]

    def run(x, weight, bias, residual=None):
        kept = mean.clone(), variance.clone()
        return bn_train(x, weight, bias, *kept, 0.1, 1e-5, slope, residual)

    assert gradcheck(run, followed)
    assert gradgradcheck(run, followed)


def with_sum(x, weight, bias, mean, variance, momentum, eps, slope, branch, batches):
    """As `everything` calls a function: its output and its sum together."""
    total, y = bn_train_sum(x, branch, weight, bias, mean, variance, momentum, eps, slope, batches)
    return y + 0.5 * total


def with_sum_reference(x, weight, bias, mean, variance, momentum, eps, slope, branch, batches):
    total = x + branch
    y = bn_train_reference(total, weight, bias, mean, variance, momentum, eps, slope, None, batches)
    return y + 0.5 * total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 5), (3, 48, 5, 7), (260, 17)], ids=str)
def test_with_a_sum_before_it(device, shape, dtype):
    given = inputs(shape, dtype, device, adds=True)
    weights = torch.randn(shape, dtype=torch.float64)
    ours = everything(with_sum, given, 0.2, weights)
    wide = [one.detach().double().cpu() for one in given]
    exact = everything(with_sum_reference, wide, 0.2, weights)
    # A rounded sum is cut off elsewhere by the ReLU, now and then.
    rough = 2e-5 if dtype is torch.float32 else 8e-2
    for value, expected in zip(ours, exact, strict=True):
        assert_near(value, expected, rough)


def test_gradient_with_a_sum_by_finite_differences(device):
    x, weight, bias, mean, variance, branch = inputs((2, 3, 2, 2), torch.float64, device, True)
    followed = [one.requires_grad_() for one in (x, branch, weight, bias)]

    def run(*given):
        return bn_train_sum(*given, mean.clone(), variance.clone(), 0.1, 1e-5, 0.2)

    assert gradcheck(run, followed)
    assert gradgradcheck(run, followed)


def test_a_sum_of_which_one_part_is_used(device):
    x, weight, bias, mean, variance, branch = inputs((4, 3, 2, 2), device=device, adds=True)
    x.requires_grad_()
    for place in (0, 1):
        kept = mean.clone(), variance.clone()
        output = bn_train_sum(x, branch, weight, bias, *kept, 0.1, 1e-5)[place]
        (gradient,) = torch.autograd.grad(output.sum(), x)
        if place == 0:
            assert torch.equal(gradient, torch.ones_like(x))


def test_what_needs_no_gradient_gets_none(device):
    x, weight, bias, mean, variance, _ = inputs((4, 3, 2, 2), device=device)
    bias.requires_grad_()
    bn_train(x, weight, bias, mean, variance, 0.1, 1e-5).sum().backward()
    assert bias.grad is not None and x.grad is None and weight.grad is None


def test_a_mean_far_larger_than_the_deviation(device):
    x = 1000 + 0.01 * torch.randn(64, 3, 8, 8, device=device)
    ones, nothing = torch.ones(3, device=device), torch.zeros(3, device=device)
    mean, variance = nothing.clone(), nothing.clone()
    bn_train(x, ones, nothing, mean, variance, 1.0, 1e-12, None)
    exact = x.double()
    torch.testing.assert_close(variance.double(), exact.var((0, 2, 3)), rtol=1e-3, atol=0)
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)


def test_one_value_a_channel_is_refused_as_torch_does(device):
    x, weight, bias, mean, variance, _ = inputs((1, 3), device=device)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        bn_train(x, weight, bias, mean, variance, 0.1, 1e-5)


def test_a_norm_of_other_channels_is_refused_as_torch_does():
    vectors = [torch.ones(4) for _ in range(4)]
    with pytest.raises(RuntimeError):
        bn_train(torch.randn(4, 8, 3, 3), *vectors, 0.1, 1e-5)


def test_nan_comes_through(device):
    x, weight, bias, mean, variance, _ = inputs((4, 3, 2, 2), device=device)
    x[0, 1] = torch.nan
    y = bn_train(x, weight, bias, mean, variance, 0.1, 1e-5)
    assert y[:, 1].isnan().all() and not y[:, 0].isnan().any()
    assert mean[1].isnan() and variance[1].isnan()
