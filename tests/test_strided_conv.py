"""Convolutions with stride 2 against their definition in float64."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import environment
from convolving import (
    assert_equal_gradients,
    case_of,
    cases,
    drawn,
    hearing,
    layouts,
    needs_avx2,
    needs_avx512,
    tensors,
    threads,
)
from hypothesis import given, settings
from hypothesis import strategies as some

from distill.models.zoo.wrn import WideResNet
from synthesis_kernels.backend import forward_pass, kernel_form
from synthesis_kernels.strided_conv import (
    StridedPair,
    find_kernel,
    strided_conv,
    strided_conv_reference,
)

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


PRECISIONS = [
    pytest.param(HALF, marks=needs_avx512),
    pytest.param(torch.float32, marks=needs_avx2),
]


def pair_reference(x, weight, point):
    return torch.cat([strided_conv_reference(x, weight), strided_conv_reference(x, point)], 1)


def pair(x, weight, point):
    return torch.cat(StridedPair.apply(x, weight, point), 1)


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=40)
@given(
    inputs=WIDTHS,
    outputs=WIDTHS,
    others=WIDTHS,
    height=some.integers(1, 11),
    width=some.integers(1, 11),
    layout=some.sampled_from(["plain", "channels last", "turned about", "a part"]),
    team=some.integers(1, 3),
)
def test_a_pair_is_both_with_all_gradients(
    precision, inputs, outputs, others, height, width, layout, team
):
    given = {
        "x": layouts(drawn(0, 2, inputs, height, width, dtype=precision))[layout],
        "weight": layouts(drawn(1, outputs, inputs, 3, 3) / 3)[layout],
        "point": layouts(drawn(2, others, inputs, 1, 1))[layout],
    }
    with threads(team):
        assert_equal_gradients(pair, pair_reference, given)


@needs_avx2
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_of_a_pair_either_may_be_used_alone_and_nothing_is_rounded_otherwise(used):
    x, weight = drawn(0, 3, 16, 9, 8), drawn(1, 32, 16, 3, 3)
    point = drawn(2, 48, 16, 1, 1)
    found = []
    for both in (StridedPair.apply, lambda x, w, p: (strided_conv(x, w), strided_conv(x, p))):
        tensors = [each.clone().requires_grad_() for each in (x, weight, point)]
        answers = both(*tensors)
        sum(answers[place].square().sum() for place in used).backward()
        found.append([*answers, *(each.grad for each in tensors)])
    for ours, apart in zip(*found, strict=True):
        zeros = torch.zeros_like(ours) if apart is None else apart
        assert torch.equal(ours, zeros)


@needs_avx2
def test_a_residual_network_takes_pairs_and_learns_as_without(monkeypatch):
    torch.manual_seed(0)
    network = WideResNet(depth=10).train()
    images, steps = drawn(0, 8, 3, 16, 16), []
    for takes in (True, False):
        model = copy.deepcopy(network)
        with monkeypatch.context() as patch:
            if not takes:
                patch.setattr("distill.models.zoo.blocks.are_pair", lambda *given: False)
            with hearing() as names, forward_pass(torch.device("cpu"), torch.float32):
                model(images).square().sum().backward()
        assert names.count("strided_pair_backward") == (2 if takes else 0)
        steps.append([each.grad for each in model.parameters()])
    assert all(torch.equal(*both) for both in zip(*steps, strict=True))
    heard = []
    network.blocks[1].shortcut.register_forward_hook(lambda *given: heard.append(1))
    with hearing() as names, forward_pass(torch.device("cpu"), torch.float32):
        network(images).sum().backward()
    assert heard and names.count("strided_pair_backward") == 1


@needs_avx2
def test_an_evaluated_network_takes_none_and_has_second_derivatives():
    model = WideResNet(depth=10).eval()
    images = drawn(0, 2, 3, 16, 16).requires_grad_()
    with hearing() as names:
        (slope,) = torch.autograd.grad(model(images).square().sum(), images, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), images)
    assert names == [] and second.abs().sum() > 0


EXPORT = """
import torch
from distill.models.zoo.wrn import WideResNet
for model in (WideResNet(depth=10).eval(), WideResNet(depth=10).train()):
    torch.export.export(model, (torch.rand(2, 3, 16, 16),), strict=True)
print("exported")
"""


@pytest.mark.process
def test_a_network_is_exported_whole_by_a_process_that_has_loaded_no_kernel():
    done = subprocess.run(
        [sys.executable, "-c", EXPORT], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.strip() == "exported", done.stderr
