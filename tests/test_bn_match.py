"""bn_match in every form, against its definition."""

import pytest
import torch
from conftest import needs_native
from forms import LAYOUTS, assert_near
from torch.autograd import gradcheck

from synthesis_kernels.backend import kernel_form
from synthesis_kernels.bn_match import (
    Moments,
    add_and_apply,
    bn_apply,
    bn_match,
    bn_match_reference,
)
from synthesis_kernels.errors import EchosetError

SHAPES = [(7, 5), (300, 17), (4, 20, 9), (3, 48, 5, 7), (2, 1, 1, 1), (5, 3, 6, 4), (2, 2, 3, 2, 3)]


def batch_norm_input(shape, dtype=torch.float32, device="cpu"):
    """(x, scale, shift), scales of both signs."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    x = (torch.randn(shape) * 2 + 3 * torch.randn(1, shape[1], *[1] * (len(shape) - 2))).to(dtype)
    return (
        x.to(device),
        torch.randn(shape[1]).to(device, wide),
        torch.randn(shape[1]).to(device, wide),
    )


def results(function, x, scale, shift, relu, weights):
    """Outputs, and the gradient of their sum, each times its weight."""
    x = x.detach().requires_grad_()
    out = function(x, scale, shift, relu)
    loss = sum(
        (o.double() * w.to(o.device)).sum()
        for o, w in zip(out, weights, strict=True)
        if w is not None
    )
    return *out, *torch.autograd.grad(loss, x)


def in_double(x, scale, shift, relu, weights):
    return results(
        bn_match_reference,
        x.double().cpu(),
        scale.double().cpu(),
        shift.double().cpu(),
        relu,
        weights,
    )


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bn_match_equals_its_definition(device, shape, layout, relu):
    x, scale, shift = batch_norm_input(shape, device=device)
    x = LAYOUTS[layout](x)
    weights = torch.randn(shape), torch.randn(shape[1]), torch.randn(shape[1])
    for ours, exact in zip(
        results(bn_match, x, scale, shift, relu, weights),
        in_double(x, scale, shift, relu, weights),
        strict=True,
    ):
        assert_near(ours, exact, 1e-5)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_moments_output_and_gradient_are_the_same(device, dtype, relu):
    x, scale, shift = batch_norm_input((3, 20, 5, 7), dtype, device)
    weights = torch.randn(x.shape).to(x)
    both = []
    for kernel in (lambda *given: bn_match(*given)[0], bn_apply):
        image = x.clone().requires_grad_()
        y = kernel(image, scale, shift, relu)
        (y * weights).sum().backward()
        both.append((y.detach(), image.grad))
    for one, other in zip(*both, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("used", [0, 1, 2])
def test_bn_match_with_one_output_used(device, used):
    x, scale, shift = batch_norm_input((3, 20, 5, 7), device=device)
    weights = [
        torch.randn(size) if place == used else None for place, size in enumerate([x.shape, 20, 20])
    ]
    *_, ours = results(bn_match, x, scale, shift, True, weights)
    *_, exact = in_double(x, scale, shift, True, weights)
    assert_near(ours, exact, 1e-5)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bn_match_of_half_precision_has_float32_moments(device, dtype, relu):
    x, scale, shift = batch_norm_input((6, 20, 5, 7), dtype, device)
    weights = torch.randn(x.shape).to(dtype), torch.randn(20), torch.randn(20)
    ours, exact = (
        results(bn_match, x, scale, shift, relu, weights),
        in_double(x, scale, shift, relu, weights),
    )
    assert [o.dtype for o in ours] == [dtype, torch.float32, torch.float32, dtype]
    for value, expected, tolerance in zip(ours, exact, (1e-2, 1e-5, 1e-5, 1e-2), strict=True):
        assert_near(value, expected, tolerance)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 2, 2)], ids=str)
def test_bn_match_gradient_by_finite_differences(device, shape, relu):
    x, scale, shift = batch_norm_input(shape, torch.float64, device)
    assert gradcheck(lambda x: bn_match(x, scale, shift, relu), x.requires_grad_())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bn_match_survives_a_mean_far_larger_than_the_deviation(device, layout):
    x = LAYOUTS[layout](1000 + 0.01 * torch.randn(64, 3, 8, 8, device=device))
    _, mean, variance = bn_match(x, torch.ones(3, device=device), torch.zeros(3, device=device))
    torch.testing.assert_close(
        variance.double(), x.double().var(dim=(0, 2, 3), correction=0), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bn_match_hides_no_nan(device, dtype):
    x, scale, shift = batch_norm_input((4, 18, 3, 3), dtype, device)
    x[2, 1, 1, 1] = float("nan")
    y, mean, variance = bn_match(x, scale, shift, True)
    assert torch.equal(y.isnan(), x.isnan())
    alone = torch.arange(18, device=device) == 1
    assert torch.equal(mean.isnan(), alone) and torch.equal(variance.isnan(), alone)


def moments_of_layers(layers, groups=None):
    """Outputs of layers, (x, scale, shift), that share a buffer, and their moments."""
    moments = Moments(layers[0][0], sum(len(scale) for _, scale, _ in layers), groups)
    start, outputs, tokens = 0, [], []
    for x, scale, shift in layers:
        y, token, _ = moments.match(x, scale, shift, True, start)
        start += len(scale)
        outputs.append(y)
        tokens.append(token)
    return outputs, moments.finish(tokens)


def exact_moments(x, scale, shift):
    y, *moments = bn_match_reference(x.double(), scale.double(), shift.double(), True)
    return y, torch.stack(moments)


@pytest.mark.parametrize("second", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_layers_share_one_finish_whatever_their_types(device, second):
    layers = [
        batch_norm_input((6, 20, 5, 7), torch.float32, device),
        batch_norm_input((6, 3), second, device),
        batch_norm_input((6, 40, 2, 2), torch.float32, device),
    ]
    inputs = [x.requires_grad_() for x, _, _ in layers]
    outputs, moments = moments_of_layers(layers)
    exact, apart = zip(*(exact_moments(*layer) for layer in layers), strict=True)
    assert moments.shape == (2, 63) and moments.dtype is torch.float32
    assert_near(moments, torch.cat(apart, 1), 1e-5)
    weights = torch.randn(2, 63, device=device)
    ours = torch.autograd.grad(
        [*outputs, moments], inputs, [*map(torch.ones_like, outputs), weights]
    )
    theirs = torch.autograd.grad(
        [*exact, torch.cat(apart, 1)], inputs, [*map(torch.ones_like, exact), weights.double()]
    )
    for one, other in zip(ours, theirs, strict=True):
        assert_near(one, other, 1e-2 if one.dtype.itemsize == 2 else 1e-5)


def test_groups_of_a_batch_have_moments_of_their_own(device):
    layers = [batch_norm_input((6, channels, 5, 3), device=device) for channels in (20, 3)]
    inputs = [x.requires_grad_() for x, _, _ in layers]
    outputs, moments = moments_of_layers(layers, groups=3)
    weights = torch.randn(3, 2, 23, device=device)
    ours = torch.autograd.grad([*outputs, moments], inputs, [*outputs, weights])
    for group in range(3):
        part = slice(2 * group, 2 * group + 2)
        alone, expected = moments_of_layers([(x[part], *rest) for x, *rest in layers])
        assert_near(moments[group], expected, 1e-6)
        theirs = torch.autograd.grad([*alone, expected], inputs, [*alone, weights[group]])
        for one, other in zip(ours, theirs, strict=True):
            assert_near(one[part], other[part], 1e-6)
    with pytest.raises(EchosetError, match="4 groups"):
        moments_of_layers(layers, groups=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_sum_is_added_up_on_the_way(device, layout, dtype):
    x, scale, shift = batch_norm_input((6, 20, 5, 7), dtype, device)
    other = LAYOUTS[layout](torch.randn_like(x))
    inputs = [tensor.detach().requires_grad_() for tensor in (LAYOUTS[layout](x), other)]
    # Triton's interpreter cuts bfloat16 off where a GPU rounds.
    moments, tolerance = Moments(x, 20), 3e-2 if dtype.itemsize == 2 else 1e-5
    y, token, total = moments.match(inputs[0], scale, shift, True, 0, inputs[1])
    alone, same = add_and_apply(*inputs, scale, shift, True)
    ours = [y, moments.finish([token]), total]
    both = (inputs[0] + inputs[1]).double()
    exact, *found = bn_match_reference(both, scale.double(), shift.double(), True)
    theirs = [exact, torch.stack(found), both]
    assert torch.equal(total, same) and torch.equal(y, alone)
    for one, two in zip(ours, theirs, strict=True):
        assert_near(one, two, tolerance)
    weights = [torch.randn_like(value) for value in ours]
    for used in ([0, 1, 2], [0], [1], [2], [0, 2]):
        given = [weights[place] for place in used]
        mine = torch.autograd.grad([ours[place] for place in used], inputs, given, True)
        expected = torch.autograd.grad(
            [theirs[place] for place in used], inputs, [w.double() for w in given], True
        )
        for one, two in zip(mine, expected, strict=True):
            assert_near(one, two, tolerance)
    mine = torch.autograd.grad([alone, same], inputs, weights[::2])
    expected = torch.autograd.grad(theirs[::2], inputs, [w.double() for w in weights[::2]])
    for one, two in zip(mine, expected, strict=True):
        assert_near(one, two, tolerance)


def test_gradients_of_one_pass_may_be_asked_for_in_parts(device):
    """One output, then another: what the first said of the moments is not left for the second."""
    layers = [batch_norm_input((6, 20, 5, 7), device=device)]
    x = layers[0][0].requires_grad_()
    (y,), moments = moments_of_layers(layers)
    weights = torch.randn(x.shape, device=device), torch.randn(2, 20, device=device)
    (both,) = torch.autograd.grad([y, moments], x, weights, retain_graph=True)
    (by_moments,) = torch.autograd.grad(moments, x, weights[1], retain_graph=True)
    (by_output,) = torch.autograd.grad(y, x, weights[0])
    assert_near(by_output + by_moments, both, 1e-6)
    with torch.no_grad():
        (again,), same = moments_of_layers(layers)
    assert torch.equal(again, y) and torch.equal(same, moments)


@needs_native
def test_threads_share_the_native_rows():
    x, scale, shift = batch_norm_input((9, 21, 16, 5))
    before = torch.get_num_threads()
    try:
        with kernel_form("native"):
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                for ours, exact in zip(
                    bn_match(x, scale, shift), bn_match_reference(x, scale, shift), strict=True
                ):
                    assert_near(ours, exact, 1e-5)
    finally:
        torch.set_num_threads(before)
