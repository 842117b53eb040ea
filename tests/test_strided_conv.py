"""Convolutions with stride 2 against their definition in float64."""

import pytest
import torch
import torch.nn.functional as F
from convolving import (
    assert_equal_gradients,
    case_of,
    cases,
    drawn,
    hearing,
    needs_avx2,
    needs_avx512,
    tensors,
    threads,
)
from hypothesis import given, settings
from hypothesis import strategies as some

from synthesis_kernels.backend import forward_pass, kernel_form
from synthesis_kernels.strided_conv import find_kernel, strided_conv, strided_conv_reference

HALF = torch.bfloat16
WIDTHS = some.sampled_from([16, 32, 80])
FORMS = [
    pytest.param(HALF, 3, marks=needs_avx512),
    pytest.param(HALF, 1, marks=needs_avx512),
    pytest.param(torch.float32, 3, marks=needs_avx2),
    pytest.param(torch.float32, 1, marks=needs_avx2),
]


@pytest.mark.parametrize(("precision", "side"), FORMS)
@settings(max_examples=40)
@given(**cases(WIDTHS, 11))
def test_it_is_the_convolution_with_all_gradients(precision, side, team, **case):
    given = case_of(precision, **case, side=side)
    assert find_kernel(*given.values())
    with threads(team):
        assert_equal_gradients(strided_conv, strided_conv_reference, given)


@pytest.mark.parametrize(("precision", "side"), FORMS)
@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "x bias"])
def test_only_the_gradients_that_are_wanted(precision, side, wanted):
    given = tensors(drawn(0, 2, 16, 5, 3, dtype=precision), 32, side=side)
    one = torch.ones((), dtype=precision).expand(2, 32, 3, 2)  # as a sum's gradient is
    kernels = (strided_conv, strided_conv_reference)
    assert_equal_gradients(*kernels, given, one, wanted=wanted.split())


@pytest.mark.parametrize(("precision", "side"), FORMS)
def test_a_bias_may_lie_anywhere_and_answers_do_not_depend_on_threads(precision, side):
    x, weight, bias = tensors(drawn(0, 5, 16, 9, 4, dtype=precision), 16, side=side).values()
    answers = []
    for team in (1, 2, 7):
        with threads(team):
            answers.append(strided_conv(x, weight, bias.repeat_interleave(2)[::2]))
    assert all(torch.equal(each, strided_conv(x, weight, bias)) for each in answers)


@needs_avx512
def test_where_it_is_taken():
    x, weight, bias = tensors(drawn(0, 2, 32, 8, 8), 16).values()
    point = weight[:, :, 1:2, 1:2]
    half = x.bfloat16()
    assert find_kernel(half, weight, bias) and find_kernel(half, point, bias)
    assert find_kernel(x, weight, bias)
    for misfit in (
        (half, weight[:, :, :2, :2], bias),
        (half, weight.bfloat16(), bias),
        (half, weight, bias[:8]),
        (half[:, :16], weight, bias),
        (half, weight[:8], bias[:8]),
    ):
        assert not find_kernel(*misfit)
    with kernel_form("reference"):
        assert not find_kernel(half, weight, bias)
    with hearing() as names, forward_pass(torch.device("cpu"), torch.bfloat16):
        y = F.conv2d(x, weight, bias, stride=2, padding=1)
        F.conv2d(x, point, bias, stride=2)
        F.conv2d(x, point, bias, stride=2, padding=1)
        F.conv2d(x, point, bias)
        F.conv2d(x, weight, bias, stride=2)
        F.conv2d(x, weight, bias, stride=(2, 1), padding=1)
        F.conv2d(x, weight, bias, stride=2, padding=1, dilation=2)
        F.conv2d(x, weight[:, :16], bias, stride=2, padding=1, groups=2)
    assert names == ["strided_conv3x3", "strided_conv1x1"] and y.dtype is torch.bfloat16
