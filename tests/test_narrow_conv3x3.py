"""The convolution to an image's few channels, and the one after a doubling, against their
definitions in float64.
"""

import pytest
import torch
import torch.nn.functional as F
from convolving import (
    LIMITS,
    PRECISIONS,
    assert_equal_gradients,
    case_of,
    cases,
    drawn,
    hearing,
    needs_avx2,
    relative,
    tensors,
    threads,
)
from hypothesis import given, settings
from hypothesis import strategies as some

from synthesis_kernels.backend import forward_pass, kernel_form
from synthesis_kernels.conv3x3 import conv3x3_reference
from synthesis_kernels.narrow_conv3x3 import narrow_conv3x3, runs
from synthesis_kernels.upsample_conv import upsample_conv, upsample_conv_reference

KERNELS = {
    "narrow": (narrow_conv3x3, conv3x3_reference),
    "upsample": (upsample_conv, upsample_conv_reference),
}


@pytest.fixture
def heard():
    with hearing() as names:
        yield names


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=40)
@given(**cases(some.integers(1, 4), 9, wide=(33, 600)))
def test_few_outputs(precision, team, **case):
    given = case_of(precision, **case)
    if given["x"][:, 0].numel() < 20:  # of so few numbers, one that cancels would tell
        given = {k: None if v is None else v.abs() for k, v in given.items()}
    assert runs(*given.values())
    with threads(team):
        assert_equal_gradients(narrow_conv3x3, conv3x3_reference, given)


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=40)
@given(**cases(some.sampled_from([16, 32, 80]), 9))
def test_after_a_doubling(precision, team, **case):
    with threads(team):
        assert_equal_gradients(upsample_conv, upsample_conv_reference, case_of(precision, **case))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "x bias"])
def test_only_the_gradients_that_are_wanted(precision, name, wanted, heard):
    kernel, reference = KERNELS[name]
    given = tensors(drawn(0, 2, 16, 5, 3, dtype=precision), 3 if name == "narrow" else 32)
    size = reference(*(t.double() for t in given.values())).shape
    one = torch.ones((), dtype=precision).expand(size)  # as a sum's gradient is
    assert_equal_gradients(kernel, reference, given, one, wanted=wanted.split())
    assert any(each.endswith("_backward") for each in heard) == ("x" in wanted)
    assert any(each.endswith("_weight") for each in heard) == ("weight" in wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", KERNELS)
def test_a_bias_may_lie_anywhere_and_answers_do_not_depend_on_threads(precision, name):
    kernel, _ = KERNELS[name]
    x, weight, bias = tensors(
        drawn(0, 5, 16, 9, 4, dtype=precision), 3 if name == "narrow" else 16
    ).values()
    answers = []
    for team in (1, 2, 7):
        with threads(team):
            answers.append(kernel(x, weight, bias.repeat_interleave(2)[::2]))
    assert all(torch.equal(each, kernel(x, weight, bias)) for each in answers)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", KERNELS)
def test_what_is_no_number_stays_none(precision, name):
    kernel, _ = KERNELS[name]
    x = torch.zeros(1, 32, 8, 8, dtype=precision)
    x[0, 3, 1, 1] = torch.nan
    y = kernel(x, drawn(1, 3 if name == "narrow" else 16, 32, 3, 3))
    assert y[0, :, 1:3, 1:3].isnan().all() and not y[0, :, 6:, 6:].isnan().any()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", KERNELS)
def test_it_cannot_be_differentiated_twice(precision, name):
    kernel, _ = KERNELS[name]
    x = drawn(0, 1, 16, 4, 4, dtype=precision).requires_grad_()
    y = kernel(x, drawn(1, 3 if name == "narrow" else 16, 16, 3, 3))
    slope = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@needs_avx2
@pytest.mark.parametrize("name", KERNELS)
def test_torchs_form_where_it_is_asked_for_or_nothing_else_fits(name, heard):
    kernel, reference = KERNELS[name]
    x, weight, bias = tensors(drawn(0, 2, 16, 4, 4), 3 if name == "narrow" else 16).values()
    with kernel_form("reference"):
        assert torch.equal(kernel(x, weight, bias), reference(x, weight, bias))
    double = [each.double() for each in (x, weight, bias)]
    torch.testing.assert_close(kernel(*double), reference(*double))
    odd = [x[:, :15], weight[:, :15], bias]
    torch.testing.assert_close(kernel(*odd), reference(*odd))
    together = torch.func.vmap(lambda one: kernel(one, weight, bias))(x[None])
    torch.testing.assert_close(together[0], reference(x, weight, bias))
    assert not heard
    kernel(x, weight, bias)
    assert heard


@needs_avx2
def test_the_end_of_a_generator_takes_it(heard):
    x, weight, bias = tensors(drawn(0, 2, 32, 8, 8), 3).values()
    with forward_pass(torch.device("cpu"), torch.float32):
        y = F.conv2d(x, weight, bias, padding=1)
        assert heard == ["narrow_conv3x3"]
        F.conv2d(x, weight, bias)
        F.conv2d(x, weight, bias, stride=2, padding=1)
        F.conv2d(x[:0], weight, bias, padding=1)
        with pytest.raises(RuntimeError):
            F.conv2d(x, weight, bias[:2], padding=1)
        with kernel_form("reference"):
            F.conv2d(x, weight, bias, padding=1)
    assert heard == ["narrow_conv3x3"]
    expected = conv3x3_reference(*(each.double() for each in (x, weight, bias)))
    assert relative(y, expected) < LIMITS[torch.float32]
