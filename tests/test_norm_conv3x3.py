"""A training BatchNorm, ReLU and convolution as one, against their definition in float64, and where
networks take it.
"""

import copy

import pytest
import torch
from convolving import (
    LIMITS,
    PRECISIONS,
    assert_equal_gradients,
    drawn,
    layouts,
    needs_avx2,
    relative,
    threads,
)
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from distill.models.zoo import blocks
from distill.models.zoo.blocks import norm_act_conv
from distill.models.zoo.wrn import WideResNet
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.norm_conv3x3 import NormConv3x3, fits, norm_conv3x3_reference

RATES = (0.25, 1e-3)


def statistics(channels):
    return {
        "mean": drawn(3, channels),
        "variance": drawn(4, channels).abs(),
        "batches": torch.tensor(6),
    }


def tensors(x, outputs, bias=True, residual=True):
    batch, inputs, height, width = x.shape
    added = drawn(5, batch, outputs, height, width, dtype=x.dtype) if residual else None
    return {
        "x": x,
        "norm_weight": drawn(6, inputs) + 0.5,
        "norm_bias": drawn(7, inputs) / 2,
        "weight": drawn(1, outputs, inputs, 3, 3) / 3,
        "bias": drawn(2, outputs) if bias else None,
        "residual": added,
    }


def running(function, kept):
    """The function of what is differentiated; `kept` takes what is not."""

    def run(x, norm_weight, norm_bias, weight, bias, residual):
        own = (norm_weight, norm_bias, *kept.values())
        return function(x, *own, weight, bias, residual, *RATES)

    return run


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=30)
@given(
    batch=some.integers(1, 3),
    inputs=some.sampled_from([16, 32, 48, 112]),
    outputs=some.sampled_from([16, 48, 64]),
    height=some.integers(2, 11),
    width=some.integers(2, 11),
    bias=some.booleans(),
    residual=some.booleans(),
    layout=some.sampled_from(["plain", "channels last", "turned about", "a part"]),
    weights=some.sampled_from(["plain", "channels last", "turned about", "a part"]),
    team=some.integers(1, 3),
)
def test_it_is_its_parts_with_all_gradients_and_running_statistics(
    precision, batch, inputs, outputs, height, width, bias, residual, layout, weights, team
):
    x = layouts(drawn(0, batch, inputs, height, width, dtype=precision))[layout]
    given = tensors(x, outputs, bias, residual)
    given["weight"] = layouts(given["weight"])[weights]
    ours = statistics(inputs)
    exact = {name: each.clone() for name, each in ours.items()}
    exact |= {name: each.double() for name, each in exact.items() if each.is_floating_point()}
    with threads(team):
        assert_equal_gradients(
            running(NormConv3x3.apply, ours),
            running(norm_conv3x3_reference, exact),
            given,
            limit=2 * LIMITS[precision],  # sums over all pixels cancel
        )
    assert ours["batches"] == exact["batches"] == 7
    for name in ("mean", "variance"):
        assert relative(ours[name], exact[name]) < 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("wanted", ["x", "weight", "norm_weight norm_bias", "bias residual"])
def test_only_the_gradients_that_are_wanted(precision, wanted):
    given = tensors(drawn(0, 2, 16, 4, 5, dtype=precision), 32)
    assert_equal_gradients(
        running(NormConv3x3.apply, statistics(16)),
        running(norm_conv3x3_reference, {k: v.double() for k, v in statistics(16).items()}),
        given,
        limit=2 * LIMITS[precision],
        wanted=wanted.split(),
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("used", ["y", "x", "y x"])
def test_x_may_be_passed_on_and_its_gradient_is_that_of_both(precision, used):
    given = tensors(drawn(0, 2, 16, 4, 5, dtype=precision), 16)

    def ours(*numbers):
        both = NormConv3x3.apply(*numbers, True)
        return sum(dict(zip("yx", both, strict=True))[name] for name in used.split())

    def exact(x, *numbers):
        both = {"y": norm_conv3x3_reference(x, *numbers), "x": x}
        return sum(both[name] for name in used.split())

    assert_equal_gradients(
        running(ours, statistics(16)),
        running(exact, {k: v.double() for k, v in statistics(16).items()}),
        given,
        limit=2 * LIMITS[precision],
        wanted=["x"],
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_mean_far_from_zero_costs_no_precision(precision):
    given = tensors(100 + drawn(0, 3, 16, 6, 6, dtype=torch.float32).to(precision), 16)
    ours, exact = statistics(16), {k: v.double() for k, v in statistics(16).items()}
    y = running(NormConv3x3.apply, ours)(*given.values())
    expected = running(norm_conv3x3_reference, exact)(*(t.double() for t in given.values()))
    assert relative(y, expected) < 20 * LIMITS[precision]
    assert relative(ours["variance"], exact["variance"]) < 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_can_go_back_twice_but_not_be_differentiated_twice(precision):
    given = tensors(drawn(0, 2, 16, 5, 5, dtype=precision), 16)
    x = given["x"].requires_grad_()
    y = running(NormConv3x3.apply, statistics(16))(*given.values())
    first = torch.autograd.grad(y.float().square().sum(), x, retain_graph=True)[0]
    slope = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)[0]
    assert torch.equal(first, slope)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_no_number_stays_none(precision):
    x = drawn(0, 1, 16, 8, 8, dtype=precision)
    x[0, 3, 1, 1] = torch.nan
    kept = statistics(16)
    y = running(NormConv3x3.apply, kept)(*tensors(x, 16).values())
    assert y.isnan().all() and kept["mean"].isnan().nonzero().tolist() == [[3]]


@needs_avx2
def test_what_it_does_not_fit():
    given = tensors(drawn(0, 8, 16, 8, 8), 16)
    x, weight, bias, residual = (given[name] for name in ("x", "weight", "bias", "residual"))
    norm = [given["norm_weight"], given["norm_bias"], torch.zeros(16), torch.ones(16)]
    assert fits(x, norm, weight, bias, residual) and fits(x, norm, weight, None, None)
    with kernel_form("reference"):
        assert not fits(x, norm, weight, bias, residual)
    misfits = [
        (x[:1], norm, weight, bias, None),
        (x.double(), norm, weight, bias, None),
        (x, [each.double() for each in norm], weight, bias, residual),
        (x, [None, *norm[1:]], weight, bias, residual),
        (x, [torch.ones(1).expand(16), *norm[1:]], weight, bias, residual),
        (x, norm, weight, bias, residual[:, :, :1]),
        (x, norm, weight, bias, residual.bfloat16()),
        (x, norm, torch.empty(80_000, 16, 3, 3), None, None),
    ]
    for misfit in misfits:
        assert not fits(*misfit)


@pytest.fixture
def taken(monkeypatch):
    """One of each time that the kernel is taken."""
    calls = []
    run = NormConv3x3.apply
    monkeypatch.setattr(blocks.NormConv3x3, "apply", lambda *given: calls.append(1) or run(*given))
    return calls


def norm_and_convolution(**options):
    norm = nn.BatchNorm2d(32, **options)
    return norm.train(), nn.Conv2d(32, 16, 3, padding=1)


@needs_avx2
@pytest.mark.parametrize("rates", [{}, {"momentum": 1, "eps": 1}, {"momentum": 0}])
def test_layers_give_what_torchs_give(taken, rates):
    norm, convolution = norm_and_convolution(**rates)
    theirs = copy.deepcopy(norm)
    x, residual = drawn(0, 4, 32, 12, 12), drawn(5, 4, 16, 12, 12)
    y, left = norm_act_conv(norm, convolution, x, residual)
    assert left is None and taken == [1]
    expected = convolution(theirs(x).relu()) + residual
    assert relative(y, expected) < 1e-5
    for ours, other in zip(norm.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, other)


@needs_avx2
def test_layers_that_somebody_listens_to_run_themselves(taken):
    norm, convolution = norm_and_convolution()
    x = drawn(0, 4, 32, 12, 12)
    for layer in (norm, convolution):
        for listen in ("register_forward_hook", "register_forward_pre_hook"):
            heard = []
            handle = getattr(layer, listen)(lambda *_, heard=heard: heard.append(1))
            norm_act_conv(norm, convolution, x)
            handle.remove()
            assert heard == [1]
    assert not taken
    norm_act_conv(norm, convolution, x)
    assert taken


@needs_avx2
def test_layers_of_other_kinds_run_themselves(taken):
    x = drawn(0, 4, 32, 12, 12)
    norm, convolution = norm_and_convolution()
    residual = drawn(5, 4, 16, 6, 6)
    strided = nn.Conv2d(32, 16, 3, stride=2, padding=1)
    y, left = norm_act_conv(norm, strided, x, residual)
    assert y.shape == (4, 16, 6, 6) and left is residual
    for other in (nn.BatchNorm2d(32).eval(), nn.BatchNorm2d(32, affine=False), nn.GroupNorm(4, 32)):
        assert norm_act_conv(other, convolution, x)[0].shape == (4, 16, 12, 12)
    assert norm_act_conv(norm.double(), convolution.double(), x.double())[0].dtype is torch.float64
    assert not taken
    norm.float().num_batches_tracked = None
    norm_act_conv(norm, convolution.float(), x)
    assert taken


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("widen", [1, 2])
def test_a_wide_network_learns_as_in_plain_torch(taken, precision, widen):
    """No farther from float64 than three times what plain torch is in this precision."""
    network = WideResNet(depth=10, widen=widen).train()
    images = torch.rand(8, 3, 16, 16)
    bfloat16 = precision is torch.bfloat16
    results = {}
    for form, dtype in (("auto", torch.float32), ("reference", torch.float32), ("reference", None)):
        copied = copy.deepcopy(network).to(dtype or torch.float64)
        with (
            kernel_form(form),
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16 and bool(dtype)),
        ):
            logits = copied(images.to(dtype or torch.float64))
        logits.float().square().sum().backward()
        grads = torch.cat([p.grad.flatten() for p in copied.parameters()])
        buffers = torch.cat([b.flatten().double() for b in copied.buffers()])
        results[form, dtype] = (logits, grads, buffers)
    assert len(taken) >= 2
    ours, plain, exact = results.values()
    for one, other, wanted in zip(ours, plain, exact, strict=True):
        assert relative(one, wanted) < 3 * relative(other, wanted) + 1e-4
