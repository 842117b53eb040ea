"""A frozen convolution with what is before and behind it, against its parts in float64."""

import pytest
import torch
from convolving import LIMITS, PRECISIONS, drawn, layouts, relative, threads
from hypothesis import given, settings
from hypothesis import strategies as some

from synthesis_kernels.bn_match import Moments
from synthesis_kernels.conv3x3 import conv3x3_reference
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.frozen_conv3x3 import Norm, frozen_conv3x3


def vectors(channels):
    return drawn(3, channels) + 0.5, drawn(4, channels) / 2


def moments_of(x, groups):  # (B, C, H, W) -> (groups, 2, C)
    parts = [torch.var_mean(part, (0, 2, 3), correction=0) for part in x.chunk(groups)]
    return torch.stack([torch.stack([mean, variance]) for variance, mean in parts])


def reference(x, residual, weight, bias, norm, groups):
    """Output, moments of x where there is a norm, and x once more."""
    told = None
    active = x
    if norm is not None:
        told = moments_of(x, groups)
        scale, shift = (each.double().view(1, -1, 1, 1) for each in (norm.scale, norm.shift))
        active = x * scale + shift
        if norm.relu:
            active = active.relu()
    y = conv3x3_reference(active, weight.double(), None if bias is None else bias.double())
    return y if residual is None else y + residual, told, x


def weighted(results):
    """One number of several results, each with gradients of its own."""
    parts = [
        (result.double() * drawn(seed, *result.shape).double()).sum() * scale
        for seed, (result, scale) in enumerate(zip(results, (1, 30, 1), strict=True))
        if result is not None and scale
    ]
    return sum(parts)


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=40)
@given(
    batch=some.sampled_from([1, 2, 4]),
    inputs=some.sampled_from([16, 32, 48, 112]),
    outputs=some.sampled_from([16, 48, 64]),
    height=some.integers(1, 9),
    width=some.integers(1, 9),
    bias=some.booleans(),
    residual=some.booleans(),
    norm=some.sampled_from([None, "plain", "ReLU"]),
    groups=some.sampled_from([None, 1, 2]),
    start=some.sampled_from([0, 5, 16]),
    again=some.booleans(),
    layout=some.sampled_from(["plain", "channels last", "turned about", "a part"]),
    team=some.integers(1, 3),
)
def test_it_is_its_parts(
    precision, batch, inputs, outputs, height, width, bias, residual, norm, groups, start, again, layout, team
):  # fmt: skip
    weight = layouts(drawn(1, outputs, inputs, 3, 3) / 3)[layout]
    own_bias = drawn(2, outputs) if bias else None
    x = layouts(drawn(0, batch, inputs, height, width, dtype=precision) + 0.5)[layout]
    added = None
    if residual:
        added = layouts(drawn(5, batch, outputs, height, width, dtype=precision))[layout]
    groups = groups if batch % (groups or 1) == 0 else None
    leaves = [each.detach().requires_grad_() for each in (x, added) if each is not None]
    exact = [each.detach().double().requires_grad_() for each in leaves]
    with threads(team):
        moments = Moments(x, start + inputs + 3, groups)
        if norm is not None:
            norm = Norm(*vectors(inputs), norm == "ReLU", moments, start)
        other = leaves[1] if residual else None
        y, token, total = frozen_conv3x3(leaves[0], weight, own_bias, norm, other)
        told = None
        if token is not None:
            moments.sums[..., :start] = moments.sums[..., start + inputs :] = 1  # no layer's
            found = moments.finish([token])
            told = found.view(-1, 2, found.shape[-1])[..., start : start + inputs]
        results = (y, told, total if again else None)
        slopes = torch.autograd.grad(weighted(results), leaves)
    other = exact[1] if residual else None
    expected = reference(exact[0], other, weight, own_bias, norm, groups or 1)
    expected = (*expected[:2], expected[2] if again else None)
    limit = LIMITS[precision]
    assert y.dtype is precision and relative(y, expected[0]) < limit
    assert torch.equal(total, x)
    if told is not None:
        assert relative(told, expected[1]) < 1e-5
    wanted = torch.autograd.grad(weighted(expected), exact)
    for ours, theirs in zip(slopes, wanted, strict=True):
        assert ours.dtype is precision and relative(ours, theirs) < limit


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("used", ["y", "moments", "total"])
def test_any_of_the_results_may_be_all_that_is_used(precision, used):
    x = drawn(0, 2, 16, 5, 6, dtype=precision)
    weight = drawn(1, 32, 16, 3, 3) / 3
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    moments = Moments(x, 16)
    norm = Norm(*vectors(16), True, moments)
    y, token, total = frozen_conv3x3(ours, weight, None, norm)
    found = (y, moments.finish([token])[None], total)
    expected = reference(exact, None, weight, None, norm, 1)
    place = ("y", "moments", "total").index(used)
    slopes = [
        torch.autograd.grad(results[place].square().sum(), leaf)[0]
        for results, leaf in ((found, ours), (expected, exact))
    ]
    assert relative(*slopes) < LIMITS[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gradient_for_the_residual_alone(precision):
    x = drawn(0, 1, 16, 4, 4, dtype=precision)
    residual = drawn(5, 1, 16, 4, 4, dtype=precision).requires_grad_()
    y, token, _ = frozen_conv3x3(x, drawn(1, 16, 16, 3, 3), residual=residual)
    assert token is None
    grad = drawn(6, 1, 16, 4, 4, dtype=precision)
    assert torch.equal(torch.autograd.grad(y, residual, grad)[0], grad)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_moments_far_from_zero_keep_their_precision(precision):
    x = 100 + drawn(0, 3, 16, 7, 7, dtype=precision)
    moments = Moments(x, 16)
    _, token, _ = frozen_conv3x3(x, drawn(1, 16, 16, 3, 3), None, Norm(*vectors(16), True, moments))
    expected = moments_of(x.double(), 1)[0]
    assert relative(moments.finish([token])[1], expected[1]) < 1e-4


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_no_number_stays_none(precision):
    x = torch.zeros(1, 32, 8, 8, dtype=precision)
    x[0, 3, 1, 1] = torch.nan
    norm = Norm(torch.ones(32), torch.zeros(32), True)
    y = frozen_conv3x3(x, drawn(1, 16, 32, 3, 3), None, norm)[0]
    assert y[0, :, :3, :3].isnan().all() and not y[0, :, 4:, 4:].isnan().any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_cannot_be_differentiated_twice(precision):
    x = drawn(0, 1, 16, 4, 4, dtype=precision).requires_grad_()
    y = frozen_conv3x3(x, drawn(1, 16, 16, 3, 3))[0]
    slope = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_does_not_fit_is_refused(precision):
    x, weight = drawn(0, 3, 16, 4, 4, dtype=precision), drawn(1, 16, 16, 3, 3)
    with pytest.raises(EchosetError, match="no 2 groups"):
        norm = Norm(*vectors(16), True, Moments(x, 16, groups=2))
        frozen_conv3x3(x, weight, None, norm)
    with pytest.raises(EchosetError, match="32 channels"):
        frozen_conv3x3(x, weight, None, Norm(*vectors(32), True))
