"""Every kernel, in every form that runs here, against its definition."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, needs_native
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from synthesis_kernels import backend
from synthesis_kernels.backend import (
    describe_forms,
    kernel_form,
    pick_form,
    repository_commit,
    resolve_device,
    resolve_precision,
)
from synthesis_kernels.bn_match import (
    Moments,
    add_and_apply,
    bn_apply,
    bn_match,
    bn_match_reference,
)
from synthesis_kernels.counter import LANE_STEP, MULTIPLIERS, uniforms, uniforms_reference
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
from synthesis_kernels.moment_target import MomentTarget, fold_batch_norm, moment_distance
from synthesis_kernels.native import find_compiler, library
from synthesis_kernels.priority import (
    Visited,
    _race,
    draw,
    draw_by_class,
    draw_chances,
    draw_distinct,
    importance_weights,
    race_keys_reference,
    record_visits,
    record_visits_reference,
)
from synthesis_kernels.upsample_conv import upsample_conv, upsample_conv_reference
from synthesis_kernels.views import ViewPlan, views, views_reference

# The form is the same in every example.
FEW = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["reference", "native", "triton"])
def device(request):
    """The device that a form runs on, with kernels in that form."""
    if request.param == "native" and not library():
        pytest.skip(f"the native kernels can't be compiled here: {library.problem}")
    if request.param == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    with kernel_form(request.param):
        yield torch.device(
            "cuda" if request.param == "triton" and torch.cuda.is_available() else "cpu"
        )


def assert_near(ours, exact, tolerance):
    """By norm, relative to the exact value."""
    ours, exact = ours.detach().double().cpu(), exact.detach().double().cpu()
    assert ours.shape == exact.shape
    assert (ours - exact).norm() <= tolerance * exact.norm() + 1e-3 * tolerance


# bn_match


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "strided": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
    "reversed_axes": lambda x: (
        x.permute(*range(x.ndim)[::-1]).contiguous().permute(*range(x.ndim)[::-1])
    ),
}
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


@pytest.mark.skipif(
    sys.platform != "linux" or not find_compiler(), reason="no C++ compiler of a Linux here"
)
def test_the_native_kernels_compile():
    assert library() is not None, library.problem


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


@needs_native
def test_threads_share_the_native_views():
    pool, index = torch.randint(256, (5, 3, 9, 9), dtype=torch.uint8), torch.arange(11) % 5
    plan, before = ViewPlan(2, True, 3, 0.5, 0.5), torch.get_num_threads()
    exact = views_reference(pool, index, torch.arange(11), plan, 4)
    floats = (pool / 255).requires_grad_()
    gradients = []
    try:
        with kernel_form("native"):
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                torch.testing.assert_close(views(pool, index, torch.arange(11), plan, 4), exact)
                seen = views(floats, index, torch.arange(11), plan, 4)
                gradients += torch.autograd.grad((seen * exact).sum(), floats)
        assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("affine", [True, False])
def test_folding_gives_what_batch_norm_gives(device, affine):
    layer = torch.nn.BatchNorm2d(6, affine=affine).to(device).eval()
    for tensor in (layer.running_mean, layer.running_var, *layer.parameters()):
        tensor.data.uniform_(0.5, 2)
    x = torch.randn(3, 6, 4, 4, device=device)
    scale, shift = fold_batch_norm(
        layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps
    )
    assert_near(bn_match(x, scale, shift)[0], layer(x), 1e-6)


def test_moment_distance_is_zero_only_at_the_running_statistics():
    mean, variance = torch.randn(4), torch.rand(4)
    assert moment_distance(mean, variance, mean, variance) == 0
    assert torch.isclose(
        moment_distance(mean + 1, variance, mean, variance), torch.tensor(2.0)
    )  # ‖(1,1,1,1)‖₂


def test_relative_moment_distance_ignores_the_scale_of_channels():
    mean, variance, running_mean, running_variance = torch.rand(4, 5, dtype=torch.float64) + 0.5
    scale = torch.tensor([0.2, 1.0, 3.0, 4.0, 2.0])
    plain = moment_distance(mean, variance, running_mean, running_variance, relative=True)
    scaled = (mean * scale, variance * scale**2, running_mean * scale, running_variance * scale**2)
    torch.testing.assert_close(moment_distance(*scaled, relative=True), plain)
    never_varied = torch.tensor([1.0, 1.0, 0.0])
    assert torch.isfinite(
        moment_distance(torch.rand(3), torch.rand(3), torch.rand(3), never_varied, relative=True)
    )


@pytest.mark.parametrize("relative", [False, True])
def test_moment_target_takes_all_layers_together(relative):
    means, variances = [torch.randn(4), torch.randn(7)], [torch.rand(4), torch.rand(7)]
    moments = torch.stack([torch.randn(11), torch.rand(11)]).requires_grad_()
    pieces = zip(*(row.split([4, 7]) for row in moments), means, variances, strict=True)
    expected = sum(moment_distance(*piece, relative) for piece in pieces)
    expected = (
        expected / 2 if relative else expected
    )  # the published sum, or the mean in relative units
    target = MomentTarget(means, variances, relative)
    distance = target.distance(moments)
    torch.testing.assert_close(distance, expected)
    slopes = [torch.autograd.grad(3 * value, moments)[0] for value in (distance, expected)]
    torch.testing.assert_close(*slopes)
    groups = torch.stack([moments, target.moments])
    torch.testing.assert_close(target.distance(groups), torch.stack([expected, torch.tensor(0.0)]))
    assert (torch.autograd.grad(target.distance(groups).sum(), groups)[0][1] == 0).all()


# Divergence


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


# Views and the counter they draw from


PLANS = [
    ViewPlan(),
    ViewPlan(crop=2),
    ViewPlan(flip=True),
    ViewPlan(cutout=3),
    ViewPlan(crop=1, cutout=4),
    ViewPlan(mixup=1.0),
    ViewPlan(crop=2, flip=True, cutout=3, mixup=0.5),
    ViewPlan(crop=9, flip=True, cutout=11),  # both larger than the image
    ViewPlan(cutmix=1.0),
    ViewPlan(crop=2, flip=True, cutout=3, mixup=0.5, cutmix=0.6),
]
FLOATS = {torch.float32: 1.2e-7, torch.float64: 1e-15, torch.bfloat16: 8e-3}


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("size", [(3, 6, 9), (1, 9, 6), (4, 17, 16)], ids=str)
def test_views_equal_their_definition(device, plan, size):
    pool = torch.randint(0, 256, (5, *size), dtype=torch.uint8)
    index, view = torch.tensor([0, 4, 4, 2, 1, 3, 0]), torch.tensor([0, 0, 1, 7, 2**31, 5, 6])
    ours = views(pool.to(device), index.to(device), view.to(device), plan, seed=3)
    exact = views_reference(pool, index, view, plan, seed=3)
    assert ours.dtype is torch.float32 and ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours.cpu(), exact, rtol=0, atol=1.2e-7 if plan.mixup else 0)
    one = torch.tensor(2**32 - 1)
    ours = views(pool.to(device), index.to(device), one.to(device), plan, seed=7 * 2**32 - 5)
    exact = views_reference(pool, index, one.expand(7), plan, seed=7 * 2**32 - 5)
    torch.testing.assert_close(ours.cpu(), exact, rtol=0, atol=1.2e-7 if plan.mixup else 0)


@pytest.mark.parametrize(
    "dtype, layout",
    [
        (torch.float32, "channels_last"),
        (torch.float32, "strided"),
        (torch.float32, "expanded"),
        (torch.float64, "contiguous"),
        (torch.bfloat16, "channels_last"),
    ],
    ids=str,
)
@pytest.mark.parametrize("plan", [ViewPlan(crop=2, flip=True), PLANS[-1]], ids=str)
def test_views_of_a_float_pool_equal_their_definition(device, plan, dtype, layout):
    """Where an image is seen several times, and others never, all that see it add up."""
    pool = LAYOUTS[layout](torch.rand(5, 3, 7, 5, device=device).to(dtype)).requires_grad_()
    index = torch.tensor([3, 0, 3, 2, 3, 0], device=device)
    view = torch.arange(6, device=device)
    weights = torch.randn(6, 3, 7, 5, device=device).to(dtype)
    outs, gradients = [], []
    for function in (views, views, views_reference):
        outs.append(function(pool, index, view, plan, seed=5))
        gradients += torch.autograd.grad((outs[-1] * weights).sum(), pool)
    assert outs[0].dtype is dtype and outs[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(outs[0], outs[1])
    if pool.device.type == "cpu" or backend.asked_form() != "reference":
        assert torch.equal(gradients[0], gradients[1])
    torch.testing.assert_close(outs[0], outs[2], rtol=0, atol=FLOATS[dtype])
    torch.testing.assert_close(gradients[0], gradients[2], rtol=0, atol=20 * FLOATS[dtype])


def test_views_of_half_precision_take_their_definition(device):
    pool = torch.rand(3, 1, 4, 4, device=device).half()
    index = torch.arange(3, device=device)
    assert torch.equal(
        views(pool, index, index, PLANS[1], 0), views_reference(pool, index, index, PLANS[1], 0)
    )


def test_a_view_is_the_same_in_any_batch_and_order(device):
    pool = torch.randint(0, 256, (9, 3, 6, 5), dtype=torch.uint8, device=device)
    plan, index, view = (
        PLANS[6],
        torch.arange(40, device=device) % 9,
        torch.arange(40, device=device) // 9,
    )
    everything = views(pool, index, view, plan, seed=1)
    order = torch.randperm(40).to(device)[:11]
    assert torch.equal(views(pool, index[order], view[order], plan, seed=1), everything[order])
    assert not torch.equal(views(pool, index, view, plan, seed=2), everything)


def test_views_of_a_strided_pool(device):
    pool = torch.randint(0, 256, (4, 3, 6, 10), dtype=torch.uint8, device=device)[..., ::2]
    index = torch.arange(8, device=device)[::2] // 2
    ours = views(pool, index, index, PLANS[6], seed=0)
    torch.testing.assert_close(
        ours, views(pool.contiguous(), index.clone(), index, PLANS[6], seed=0), rtol=0, atol=0
    )


def test_views_happen_as_often_as_planned():
    pool = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    pool[0, 0, 1, 2] = 255  # right of the middle
    count = 4000
    index, view = torch.zeros(count, dtype=torch.int64), torch.arange(count)
    flipped = views(pool, index, view, ViewPlan(flip=True), seed=0)[:, 0, 1, 0]
    assert abs(flipped.mean() - 0.5) < 0.03
    pool[0, 0, 1] = torch.tensor([0, 255, 0])
    shifted = views(pool, index, view, ViewPlan(crop=1), seed=0).mean(0)[0]
    assert (shifted - 1 / 9).abs().max() < 0.02  # every shift alike
    pool.fill_(255)
    cut = 1 - views(pool, index, view, ViewPlan(cutout=1), seed=0).mean(0)[0]
    assert (cut - 1 / 9).abs().max() < 0.02
    pools = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 3, 3)
    mixed = views(pools, index, view, ViewPlan(mixup=0.4), seed=0)[:, 0, 0, 0]
    assert abs((mixed > 0).float().mean() - 0.2) < 0.03  # 0.4, and every second partner is as black


@pytest.mark.parametrize(
    "plan",
    [ViewPlan(crop=1, flip=True, cutout=2), ViewPlan(mixup=1.0), PLANS[6], PLANS[-2], PLANS[-1]],
    ids=str,
)
def test_views_of_a_float_pool_are_differentiable(device, plan):
    index = view = torch.tensor([0, 2, 2], device=device)
    pool = torch.rand(3, 1, 4, 3, dtype=torch.float64, device=device, requires_grad=True)
    # Interpreted, a kernel takes a tenth of a second: along a few directions is enough.
    few = backend.asked_form() == "triton"
    assert gradcheck(lambda pool: views(pool, index, view, plan, seed=5), pool, fast_mode=few)
    single = pool.detach().float().requires_grad_()
    outs = [function(single, index, view, plan, seed=5) for function in (views, views_reference)]
    weights = torch.randn(3, 1, 4, 3, device=device)
    ours, exact = (torch.autograd.grad((out * weights).sum(), single)[0] for out in outs)
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1.2e-7)
    torch.testing.assert_close(ours, exact)


def test_views_refuse_a_pool_of_integers():
    with pytest.raises(EchosetError, match="uint8 or float"):
        views(
            torch.zeros(1, 1, 2, 2, dtype=torch.int32),
            torch.zeros(1).long(),
            torch.zeros(1).long(),
            ViewPlan(),
            0,
        )


def test_the_counter_is_its_formula(device):
    def mix(x):
        x = (x ^ x >> 16) * MULTIPLIERS[0] % 2**32
        x = (x ^ x >> 15) * MULTIPLIERS[1] % 2**32
        return x ^ x >> 16

    index, view, seed = [0, 1, 5, 2**32 - 1], [0, 3, 2**31, 2**32 - 1], 7 * 2**32 - 5
    place = mix((mix(seed >> 32) + seed) % 2**32)
    keys = [mix((mix((i + place) % 2**32) + v) % 2**32) for i, v in zip(index, view, strict=True)]
    expected = [
        [(mix((key + lane * LANE_STEP) % 2**32) >> 8) / 2**24 for key in keys]
        for lane in range(1, 9)
    ]
    index, view = torch.tensor(index, device=device), torch.tensor(view, device=device)
    assert uniforms(index, view, seed, 8).tolist() == expected
    for many, of in ((1, view), (700, view), (20, view[2])):
        definition = uniforms_reference(index.cpu(), of.cpu(), seed, many)
        assert torch.equal(uniforms(index, of, seed, many).cpu(), definition)


@pytest.mark.parametrize("start, seed", [(0, 0), (1 << 20, 12345)])
def test_counter_numbers_look_independent(start, seed):
    count = 40_000
    place, fixed = start + torch.arange(count), torch.full((count,), 7)
    by_index, by_view = (
        uniforms(place, fixed, seed, 8).double(),
        uniforms(fixed, place, seed, 8).double(),
    )
    for numbers in (by_index, by_view):
        assert numbers.min() >= 0 and numbers.max() < 1
        assert (numbers.mean(1) - 0.5).abs().max() < 4.5 * (1 / 12 / count) ** 0.5
        assert (numbers.var(1) - 1 / 12).abs().max() < 4.5 * (1 / 180 / count) ** 0.5
        # Lanes among each other, and each lane with every lane of the next place.
        together = torch.corrcoef(torch.cat([numbers[:, :-1], numbers[:, 1:]])) - torch.eye(16)
        assert together.abs().max() < 4.5 / count**0.5
    other = uniforms(place, fixed, seed + 1, 8).double()
    assert torch.corrcoef(torch.cat([by_index, other]))[:8, 8:].abs().max() < 4.5 / count**0.5


# Priorities


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
    torch.testing.assert_close(
        draw_chances(torch.tensor([0.0, 5.0, 50.0]), 0.0), torch.full((3,), 1 / 3)
    )


def test_race_keys_equal_their_definition(device):
    chances = torch.rand(3000, device=device) * (torch.rand(3000, device=device) > 0.2)
    keys = _race(chances, torch.Generator(device).manual_seed(1))
    luck = torch.rand(3000, generator=torch.Generator(device).manual_seed(1), device=device)
    torch.testing.assert_close(keys, race_keys_reference(chances, luck), rtol=1e-6, atol=0)


@given(
    chances=st.lists(st.sampled_from([0.0, 0.1, 1.0, 5.0]), min_size=1, max_size=12),
    count=st.data(),
)
@FEW
def test_distinct_draws_never_repeat_and_take_the_impossible_last(device, chances, count):
    count = count.draw(st.integers(1, len(chances)))
    drawn = draw_distinct(
        torch.tensor(chances, device=device), count, torch.Generator(device).manual_seed(count)
    )
    assert len(set(drawn.tolist())) == count
    possible = sum(chance > 0 for chance in chances)
    assert sum(chances[i] > 0 for i in drawn.tolist()) == min(count, possible)


def test_the_first_distinct_draw_follows_the_chances():
    chances, generator = torch.tensor([0.1, 0.0, 0.2, 0.7]), torch.Generator().manual_seed(0)
    with kernel_form("reference"):
        drawn = torch.stack([draw_distinct(chances, 2, generator) for _ in range(4000)])
    torch.testing.assert_close(
        torch.bincount(drawn[:, 0], minlength=4) / 4000, chances, atol=0.03, rtol=0
    )
    # And the second, without the first: P(j | i) = P(j)/(1 − P(i)).
    after = drawn[drawn[:, 0] == 3, 1]
    torch.testing.assert_close(
        torch.bincount(after, minlength=4) / len(after),
        torch.tensor([1 / 3, 0, 2 / 3, 0]),
        atol=0.04,
        rtol=0,
    )


@given(
    data=st.data(), classes=st.integers(1, 4), count=st.integers(1, 14), seed=st.integers(0, 999)
)
@settings(FEW, max_examples=60)
def test_draws_by_class_meet_the_quotas(data, classes, count, seed):
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    chances = data.draw(st.lists(st.sampled_from([0.0, 0.2, 3.0]), min_size=count, max_size=count))
    wanted = data.draw(
        st.lists(st.integers(0, classes - 1), max_size=count)
    )  # the class of every place
    quotas, total = [wanted.count(c) for c in range(classes)], len(wanted)
    drawn = draw_by_class(
        torch.tensor(chances),
        torch.tensor(labels),
        torch.tensor(quotas),
        total,
        torch.Generator().manual_seed(seed),
    ).tolist()
    assert len(drawn) == len(set(drawn)) == total
    candidates = [
        sum(chance > 0 and label == c for chance, label in zip(chances, labels, strict=True))
        for c in range(classes)
    ]
    taken = [sum(chances[i] > 0 and labels[i] == c for i in drawn) for c in range(classes)]
    assert all(t >= min(q, n) for t, q, n in zip(taken, quotas, candidates, strict=True))
    if all(n >= q for q, n in zip(quotas, candidates, strict=True)):
        assert taken == quotas
    assert sum(taken) == min(total, sum(candidates))


def test_draws_within_a_class_follow_the_chances():
    chances, labels = torch.tensor([1.0, 3.0, 50.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1, 0])
    generator, quotas = torch.Generator().manual_seed(0), torch.tensor([1, 1])
    drawn = torch.cat([draw_by_class(chances, labels, quotas, 2, generator) for _ in range(3000)])
    share = torch.bincount(drawn, minlength=5) / 3000
    torch.testing.assert_close(
        share, torch.tensor([1 / 6, 1 / 2, 50 / 52, 2 / 52, 1 / 3]), atol=0.04, rtol=0
    )


@pytest.mark.parametrize("count", [1, 7, 40])
def test_visits_leave_what_their_definition_says(device, count):
    """Some slots are drawn several times, in any order, some for the first time."""
    generator = torch.Generator().manual_seed(count)
    slots = 23
    numbers = torch.rand(5, slots, generator=generator)
    numbers[4] = torch.randint(0, 3, (slots,), generator=generator)
    numbers[2, ::5] = 0
    importance = torch.rand(slots, generator=generator)
    ours = Visited(*numbers.clone().to(device))
    exact = Visited(*numbers.clone())
    for _ in range(3):
        drawn = torch.randint(slots, (count,), generator=generator)
        apart = torch.rand(count, generator=generator)
        record_visits_reference(exact, drawn, apart, importance[drawn])
        record_visits(ours, *(x.to(device) for x in (drawn, apart, importance[drawn])))
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found.cpu(), expected)


@needs_native
def test_a_visit_of_no_slot_is_refused():
    kept = Visited(*torch.zeros(5, 3))
    with kernel_form("native"), pytest.raises(IndexError):
        record_visits(kept, torch.tensor([0, 3]), torch.ones(2), torch.ones(2))
    assert not kept.visits.any()


# Doubling and convolving


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 2)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_upsample_conv_equals_its_definition(size, with_bias):
    x, weight = (
        torch.randn(2, 3, *size, dtype=torch.float64),
        torch.randn(4, 3, 3, 3, dtype=torch.float64),
    )
    bias = torch.randn(4, dtype=torch.float64) if with_bias else None
    expected = upsample_conv_reference(x, weight, bias)
    torch.testing.assert_close(upsample_conv(x, weight, bias), expected)
    last = upsample_conv(x.contiguous(memory_format=torch.channels_last), weight, bias)
    torch.testing.assert_close(last, expected)


def test_upsample_conv_gradient_by_finite_differences():
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((1, 2, 3, 2), (2, 2, 3, 3), (2,))
    ]
    assert gradcheck(upsample_conv, inputs)


# Which form runs


def test_a_form_holds_inside_its_region_only():
    x = torch.zeros(1)
    automatic = pick_form(x)
    with kernel_form("reference"):
        assert pick_form(x) == "reference" and "reference, as asked" in describe_forms(x.device)
        with pytest.raises(ValueError), kernel_form("auto"):
            assert pick_form(x) == automatic
            raise ValueError
        assert pick_form(x) == "reference"
    assert pick_form(x) == automatic
    with pytest.raises(EchosetError, match="no kernel form 'cuda'"), kernel_form("cuda"):
        pass
    with kernel_form(
        "triton"
        if importlib.util.find_spec("triton") and not torch.cuda.is_available()
        else "reference"
    ):
        assert (
            pick_form(x, has=("reference", "native")) == "reference"
        )  # a kernel without the form asked for


def in_a_process(code, **environment):
    """What `code` prints, run with these variables (None removes one)."""
    merged = os.environ | {"PYTHONPATH": str(Path(backend.__file__).parents[1])} | environment
    merged = {name: value for name, value in merged.items() if value is not None}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=merged)
    assert done.returncode == 0, done.stderr
    return done.stdout


ASK = """
import torch
from synthesis_kernels.backend import describe_forms, kernel_form, name_form, pick_form
from synthesis_kernels.bn_match import bn_match
from synthesis_kernels.errors import EchosetError
x = torch.randn(4, 3)
with kernel_form("{form}"):
    for ask in (lambda: bn_match(x, torch.ones(3), torch.zeros(3)), lambda: describe_forms(x.device)):
        try:
            ask()
        except EchosetError as error:
            print(error)
bn_match(x, torch.ones(3), torch.zeros(3))
print(pick_form(x), "|", describe_forms(x.device))
print(name_form(x.device))
"""


def test_a_form_asked_for_by_name_must_run():
    said = in_a_process(ASK.format(form="triton"), TRITON_INTERPRET=None).splitlines()
    reason = "needs a CUDA device" if importlib.util.find_spec("triton") else "not installed"
    assert all("in their triton form, but triton" in line and reason in line for line in said[:2])


def test_without_a_compiler_kernels_are_plain_torch_unless_native_was_asked_for(tmp_path):
    *asked, automatic, name = in_a_process(
        ASK.format(form="native"), CXX="/bin/false", ECHOSET_CACHE=str(tmp_path)
    ).splitlines()
    assert len(asked) == 2 and all(
        "native form, but it can't be compiled here" in line for line in asked
    )
    assert automatic.startswith(
        "reference | kernels: reference (plain torch), because it can't be compiled here"
    )
    assert name == "reference"  # a stopped run may go on though the compiler's words differ


@needs_native
def test_native_kernels_do_without_a_home_and_take_a_compiler_of_several_words(tmp_path):
    """Without a folder to keep them in, they are compiled for this process alone; CXX may carry
    options, as for make.
    """
    nowhere = {
        "HOME": "/proc/none",
        "XDG_CACHE_HOME": None,
        "ECHOSET_CACHE": None,
        "TMPDIR": str(tmp_path),
    }
    assert (
        in_a_process(
            ASK.format(form="native"), **nowhere, CXX=f"{find_compiler()} -DNONE"
        ).splitlines()[-1]
        == "native"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "told, threads",
    [("150000 100000", 1), ("200000 100000", 2), ("900000 100000", 3), ("max 100000", 3)],
)
def test_threads_are_no_more_than_a_container_may_use(tmp_path, monkeypatch, told, threads):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        torch.set_num_threads(3)
        (tmp_path / "cpu.max").write_text(told)
        backend.heed_quota(tmp_path / "none")
        backend.heed_quota(tmp_path / "cpu.max")
        assert torch.get_num_threads() == threads
        torch.set_num_threads(3)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        backend.heed_quota(tmp_path / "cpu.max")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_triton_is_taken_only_where_its_driver_loads(monkeypatch):
    runtime = pytest.importorskip("triton.runtime", reason="triton is not installed")

    class Broken:
        @property
        def active(self):
            raise RuntimeError("Failed to find\n C compiler")

    monkeypatch.setattr(runtime, "driver", Broken())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backend._driver_problem.cache_clear()
    try:
        expected = (
            "reference (plain torch), because triton can't run here: Failed to find C compiler"
        )
        assert describe_forms(torch.device("cuda")) == f"kernels: {expected}"
    finally:
        backend._driver_problem.cache_clear()


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32], ids=str)
def test_views_of_no_image_are_nan_where_nobody_waits_to_hear_of_them(kind):
    pytest.importorskip("triton", reason="triton is for Linux on x86_64")
    pool, index = torch.ones(3, 1, 5, 5, dtype=kind), torch.tensor([0, 3, -1, 2])
    pool.requires_grad_(kind.is_floating_point)
    with kernel_form("triton"):
        seen = views(pool, index, torch.arange(4), ViewPlan(2, True, 2, 0.5, 0.5), 1)
    assert seen.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
    assert not seen[[0, 3]].isnan().any()
    if pool.requires_grad:
        (gradient,) = torch.autograd.grad(seen[[0, 3]].sum(), pool)
        assert gradient.isfinite().all() and (gradient != 0).any()


@pytest.mark.parametrize("form", ["reference", pytest.param("native", marks=needs_native)])
def test_views_of_no_image_are_refused(form):
    pool = torch.zeros(3, 1, 5, 5, dtype=torch.uint8)
    with kernel_form(form), pytest.raises(IndexError):
        views(pool, torch.tensor([0, 3]), torch.arange(2), ViewPlan(0, False, 0, 0.0), 1)
    index = torch.tensor([2, 0], dtype=torch.int32)
    with kernel_form(form):
        assert (
            views(pool + 9, index, torch.arange(2), ViewPlan(0, False, 0, 0.0), 1)
            .mul(255)
            .round()
            .eq(9)
            .all()
        )


def test_results_do_without_git(monkeypatch):
    commit = repository_commit()
    assert commit is None or re.fullmatch("[0-9a-f]{7,40}(-dirty)?", commit)
    if commit:
        asked = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", ".", ":!configs/results"]
        assert commit.endswith("-dirty") == bool(subprocess.run(asked).returncode)
    monkeypatch.setenv("PATH", "/nowhere")
    assert repository_commit() is None


def test_a_device_asked_for_by_name_must_exist():
    if torch.cuda.is_available():
        assert resolve_device("cuda").type == "cuda"
    else:
        with pytest.raises(EchosetError, match="no CUDA device"):
            resolve_device("cuda")
    assert resolve_precision(torch.device("cpu"), "float32") is torch.float32
