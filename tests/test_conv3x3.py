"""Winograd's convolution against its definition: values, all gradients, any layout."""

import pytest
import torch
from conftest import needs_native
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

from synthesis_kernels import conv3x3 as module
from synthesis_kernels import native
from synthesis_kernels.conv3x3 import conv3x3, conv3x3_reference


def layer(inputs, outputs, bias=True):
    return {
        "weight": drawn(1, outputs, inputs, 3, 3) / 3,
        "bias": drawn(2, outputs) if bias else None,
    }


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=50)
@given(
    batch=some.integers(1, 3),
    inputs=some.sampled_from([16, 32, 48, 80, 112]),
    outputs=some.sampled_from([16, 32, 48, 112]),
    height=some.integers(1, 13),
    width=some.integers(1, 13),
    bias=some.booleans(),
    team=some.integers(1, 3),
    layout=some.sampled_from(["plain", "channels last", "turned about", "a part"]),
    weights=some.sampled_from(["plain", "channels last", "turned about", "a part"]),
)
def test_it_is_the_convolution_with_all_gradients(
    precision, batch, inputs, outputs, height, width, bias, team, layout, weights
):
    x = drawn(0, batch, inputs, height, width, dtype=precision)
    own = layer(inputs, outputs, bias)
    own["weight"] = layouts(own["weight"])[weights]
    with threads(team):
        assert_equal_gradients(conv3x3, conv3x3_reference, {"x": layouts(x)[layout], **own})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_layout_gives_the_same(precision):
    x = drawn(0, 2, 32, 9, 6, dtype=precision)
    weight, bias = layer(32, 48).values()
    expected = conv3x3(x, weight, bias)
    for one in layouts(x).values():
        assert torch.equal(conv3x3(one, weight, bias), expected)
    for one in layouts(weight).values():
        assert torch.equal(conv3x3(x, one, bias.repeat_interleave(2)[::2]), expected)
    assert torch.equal(conv3x3(x[1:], weight, bias), expected[1:])  # whatever the batch


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", ["plain", "channels last", "a part"])
def test_a_gradient_lies_in_memory_as_torchs(precision, layout):
    weight = layouts(drawn(1, 32, 16, 3, 3))[layout].requires_grad_()
    conv3x3(drawn(0, 1, 16, 4, 4, dtype=precision), weight).sum().backward()
    assert weight.grad.stride() == torch.empty_like(weight).stride()


@needs_avx2
def test_it_is_right_whatever_a_register_holds(tmp_path, monkeypatch):
    """8 numbers, or 16 as with AVX-512, of which 16 channels are half of what is packed: the
    compiler makes either for any processor.
    """
    for name in (
        "lanes.h",
        "ahead.h",
        "numbers.h",
        "winograd.h",
        "tiles.h",
        "conv3x3.cpp",
        "channel_sums.cpp",
    ):
        (tmp_path / "cpp").mkdir(exist_ok=True)
        (tmp_path / "cpp" / name).write_bytes((native.SOURCES / name).read_bytes())
    other = 8 if "avx512f" in native._processor_flags() else 16
    flags = [*native.FLAGS, "-O1", "-mno-avx512bf16", f"-DWIDE={other}"]
    monkeypatch.setenv("ECHOSET_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "SOURCES", tmp_path / "cpp")
    monkeypatch.setattr(native, "FLAGS", flags)
    monkeypatch.setattr(native, "library", native._Library())
    for inputs, outputs in ((16, 48), (48, 16), (32, 80)):
        given = {"x": drawn(0, 2, inputs, 9, 7), **layer(inputs, outputs)}
        assert module.runs(*given.values()) and not native.has("conv3x3_bfloat16")
        assert_equal_gradients(conv3x3, conv3x3_reference, given)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_bytes_again_and_the_answers_for_any_number_of_threads(precision):
    x = drawn(0, 5, 48, 17, 6, dtype=precision)
    weight = layer(48, 32)["weight"].requires_grad_()
    answers, slopes = [], []
    for team in (1, 2, 2, 5):
        with threads(team):
            answers.append(conv3x3(x, weight))
            slopes.append(torch.autograd.grad(answers[-1].float().square().sum(), weight)[0])
    assert all(torch.equal(each, answers[0]) for each in answers)
    assert torch.equal(slopes[1], slopes[2]) and relative(slopes[0], slopes[3]) < LIMITS[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "x bias", "weight bias"])
@pytest.mark.parametrize("outputs", [16, 4112])  # the latter are too many weights to add up
def test_only_the_gradients_that_are_wanted(precision, wanted, outputs):
    given = {"x": drawn(0, 2, 16, 5, 6, dtype=precision), **layer(16, outputs)}
    one = torch.ones((), dtype=precision).expand(2, outputs, 5, 6)  # as a sum's gradient is
    assert_equal_gradients(conv3x3, conv3x3_reference, given, one, wanted=wanted.split())


@needs_avx2
def test_a_frozen_layer_keeps_no_maps_and_a_trained_one_its_input():
    x = torch.randn(2, 16, 5, 5, requires_grad=True)
    weight = torch.randn(16, 16, 3, 3)
    frozen = conv3x3(x, weight)
    trained = conv3x3(x, weight.clone().requires_grad_())
    assert frozen.grad_fn.saved_tensors[0] is None
    assert trained.grad_fn.saved_tensors[0] is x


@needs_avx2
@pytest.mark.parametrize("first", ["x", "weight"])
@pytest.mark.parametrize("second", ["x", "weight"])
def test_what_is_differentiated_twice_is_the_librarys(first, second):
    tensors = {"x": drawn(0, 2, 16, 5, 5), "weight": drawn(1, 16, 16, 3, 3)}
    tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    slopes = []
    for convolve in (conv3x3, conv3x3_reference):
        y = convolve(*tensors.values())
        slope = torch.autograd.grad(y.pow(3).sum(), tensors[first], create_graph=True)[0]
        slopes.append(torch.autograd.grad(slope.square().sum(), tensors[second])[0])
    assert relative(*slopes) < 1e-5


@needs_avx2
def test_a_frozen_layer_is_differentiated_twice_too():
    x, weight = drawn(0, 2, 16, 5, 5).requires_grad_(), drawn(1, 16, 16, 3, 3)
    slopes = []
    for convolve in (conv3x3, conv3x3_reference):
        slope = torch.autograd.grad(convolve(x, weight).pow(3).sum(), x, create_graph=True)[0]
        slopes.append(torch.autograd.grad(slope.square().sum(), x)[0])
    assert relative(*slopes) < 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_batch_may_be_empty_and_numbers_may_be_none(precision):
    weight = drawn(1, 16, 32, 3, 3).requires_grad_()
    y = conv3x3(torch.empty(0, 32, 4, 4, dtype=precision), weight)
    y.sum().backward()
    assert y.shape == (0, 16, 4, 4) and not weight.grad.any()
    x = torch.zeros(1, 32, 8, 8, dtype=precision)
    x[0, 3, 1, 1] = torch.nan
    y = conv3x3(x, weight)
    assert y[0, :, :3, :3].isnan().all() and not y[0, :, 4:, 4:].isnan().any()


@needs_avx2
def test_what_it_does_not_fit_is_the_librarys():
    x, weight = torch.randn(1, 16, 4, 4), torch.randn(16, 16, 3, 3)
    assert module.runs(x, weight)
    misfits = [
        (x.double(), weight.double()),
        (x, weight.bfloat16()),
        (x.to("meta"), weight),
        (x, weight[:, :8]),
        (x[0], weight),
        (x, weight[:8]),
        (x, torch.randn(16, 16, 1, 1)),
        (x, weight, torch.randn(8)),
        (x, weight, torch.randn(16).double()),
    ]
    for misfit in misfits:
        assert not module.runs(*misfit)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@given(rows=some.integers(0, 300), channels=some.integers(1, 50), team=some.integers(1, 3))
def test_sums_of_channels(dtype, rows, channels, team):
    x = drawn(0, rows, channels, dtype=dtype)
    with threads(team):
        sums = native.channel_sums(x.view(rows, 1, channels))
    assert sums.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    torch.testing.assert_close(sums.double(), x.double().sum(0), rtol=1e-4, atol=1e-4)
