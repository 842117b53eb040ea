"""A 3×3 convolution with stride 2 against its definition in float64."""

import pytest
import torch
import torch.nn.functional as F
from convolving import PRECISIONS, assert_equal_gradients, drawn, layouts, needs_avx512, threads
from hypothesis import given, settings
from hypothesis import strategies as some

from synthesis_kernels import native
from synthesis_kernels.backend import forward_pass, kernel_form
from synthesis_kernels.strided_conv3x3 import StridedConv3x3, runs

LAYOUTS = ["plain", "channels last", "turned about", "a part"]


def reference(x, weight, bias):
    return F.conv2d(x, weight, bias, stride=2, padding=1)


def tensors(x, outputs, bias=True):
    weight = drawn(1, outputs, x.shape[1], 3, 3) / 3
    return {"x": x, "weight": weight, "bias": drawn(2, outputs) if bias else None}


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=40)
@given(
    batch=some.integers(1, 3),
    inputs=some.sampled_from([16, 32, 48, 112]),
    outputs=some.sampled_from([16, 32, 80]),
    height=some.integers(1, 11),
    width=some.integers(1, 11),
    bias=some.booleans(),
    team=some.integers(1, 3),
    layout=some.sampled_from(LAYOUTS),
    weights=some.sampled_from(LAYOUTS),
)
def test_it_is_the_convolution_with_all_gradients(
    precision, batch, inputs, outputs, height, width, bias, team, layout, weights
):
    x = drawn(0, batch, inputs, height, width, dtype=precision)
    given = tensors(layouts(x)[layout], outputs, bias)
    given["weight"] = layouts(given["weight"])[weights]
    with threads(team):
        assert_equal_gradients(StridedConv3x3.apply, reference, given)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "x bias"])
def test_only_the_gradients_that_are_wanted(precision, wanted):
    given = tensors(drawn(0, 2, 16, 5, 3, dtype=precision), 32)
    one = torch.ones((), dtype=precision).expand(2, 32, 3, 2)  # as a sum's gradient is
    assert_equal_gradients(StridedConv3x3.apply, reference, given, one, wanted=wanted.split())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bias_may_lie_anywhere_and_answers_do_not_depend_on_threads(precision):
    x, weight, bias = tensors(drawn(0, 5, 16, 9, 4, dtype=precision), 16).values()
    answers = []
    for team in (1, 2, 7):
        with threads(team):
            answers.append(StridedConv3x3.apply(x, weight, bias.repeat_interleave(2)[::2]))
    assert all(torch.equal(each, StridedConv3x3.apply(x, weight, bias)) for each in answers)


@needs_avx512
def test_where_it_is_taken():
    x, weight, bias = tensors(drawn(0, 2, 32, 8, 8), 16).values()
    half = x.bfloat16()
    assert runs(half, weight, bias)
    for misfit in (
        (x, weight, bias),
        (half, weight.bfloat16(), bias),
        (half, weight, bias[:8]),
        (half[:, :16], weight, bias),
        (half, weight[:8], bias[:8]),
    ):
        assert not runs(*misfit)
    with kernel_form("reference"):
        assert not runs(half, weight, bias)
    names = []
    listen = lambda name, arguments: names.append(name)  # noqa: E731
    native.listeners.append(listen)
    with forward_pass(torch.device("cpu"), torch.bfloat16):
        y = F.conv2d(x, weight, bias, stride=2, padding=1)
        F.conv2d(x, weight, bias, stride=2)
        F.conv2d(x, weight, bias, stride=(2, 1), padding=1)
        F.conv2d(x, weight, bias, stride=2, padding=1, dilation=2)
        F.conv2d(x, weight[:, :16], bias, stride=2, padding=1, groups=2)
    native.listeners.remove(listen)
    assert names == ["strided_conv3x3"] and y.dtype is torch.bfloat16
