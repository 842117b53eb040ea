from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from distill.models import ModelSpec, build_classifier
from distill.models.frozen import Frozen
from synthesis_kernels import conv3x3 as module
from synthesis_kernels.backend import forward_pass, kernel_form
from synthesis_kernels.conv3x3 import FrozenConv3x3, WinogradConvolutions, conv3x3, conv3x3_reference, pays
from synthesis_kernels.native import library

needs_avx512 = pytest.mark.skipif(
    not hasattr(library() or object(), "conv3x3_bfloat16"), reason="needs a processor with AVX-512 bfloat16 and a C++ compiler"
)
needs_avx2 = pytest.mark.skipif(
    not hasattr(library() or object(), "conv3x3_float32"), reason="needs a processor with AVX2 and a C++ compiler"
)
CPU = torch.device("cpu")


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@needs_avx512
@pytest.mark.parametrize(
    "inputs, outputs, height, width", [(32, 32, 8, 8), (48, 32, 7, 9), (32, 80, 1, 1), (64, 48, 5, 2), (128, 128, 4, 4)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_winograd_is_the_convolution_and_its_gradient(inputs, outputs, height, width, bias):
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    x = torch.randn(3, inputs, height, width).to(torch.bfloat16).requires_grad_()
    grad = torch.randn(3, outputs, height, width).to(torch.bfloat16)
    exact = x.detach().double().requires_grad_()
    expected = conv3x3_reference(exact, layer.weight.double(), layer.bias.double() if bias else None)
    fast = FrozenConv3x3(layer)
    for form, tolerance in (("native", 8e-3), ("reference", 5e-3)):  # of bfloat16: eight bits
        with kernel_form(form):
            y = fast(x)
        assert y.dtype is torch.bfloat16 and relative(y, expected) < tolerance
        found, wanted = (torch.autograd.grad(*pair, g) for *pair, g in ((y, x, grad), (expected, exact, grad.double())))
        assert relative(found[0], wanted[0]) < tolerance
        expected = conv3x3_reference(exact, layer.weight.double(), layer.bias.double() if bias else None)


@needs_avx512
def test_any_layout_gives_the_same():
    layer = FrozenConv3x3(nn.Conv2d(32, 32, 3, padding=1))
    x = torch.randn(2, 32, 6, 6).to(torch.bfloat16)
    expected = layer(x)
    assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(layer(x.transpose(2, 3).contiguous().transpose(2, 3)), expected)


def test_only_the_convolutions_it_computes_are_replaced():
    plain = {"kernel_size": 3, "padding": 1}
    for change in (
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"padding": 0},
        {"padding_mode": "reflect"},
        {"kernel_size": 1},
        {"kernel_size": 5},
    ):
        assert not pays(nn.Conv2d(32, 32, **plain | change))
    assert not pays(nn.Conv2d(16, 64, **plain)) and not pays(nn.Conv2d(40, 40, **plain)) and not pays(nn.ReLU())


@needs_avx512
def test_a_frozen_network_in_bfloat16_answers_as_precisely_with_it_as_without():
    original = build_classifier(ModelSpec("wrn-16-2", channels=3, size=32, classes=10)).eval()
    images = torch.rand(8, 3, 32, 32)
    frozen = Frozen(original, torch.bfloat16)
    assert sum(isinstance(m, FrozenConv3x3) for m in frozen.modules()) == 9
    with torch.no_grad():
        exact, fast = original(images), frozen(images)
        with kernel_form("reference"):
            plain = Frozen(original, torch.bfloat16)(images)
        assert relative(fast, exact) < 3 * relative(plain, exact) + 1e-3
        for parameter in original.parameters():
            parameter.mul_(1.05)
        frozen.refresh()
        assert relative(frozen(images), original(images)) < 3 * relative(plain, exact) + 1e-3


@needs_avx2
@given(
    batch=some.integers(1, 3),
    inputs=some.sampled_from([16, 32, 48, 80]),
    outputs=some.sampled_from([16, 32, 48, 112]),
    height=some.integers(1, 13),
    width=some.integers(1, 13),
    bias=some.booleans(),
    threads=some.integers(1, 3),
    seed=some.integers(0, 99),
)
def test_in_float32_it_is_the_convolution_with_all_gradients(batch, inputs, outputs, height, width, bias, threads, seed):
    luck = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=luck)  # noqa: E731
    given = [draw(batch, inputs, height, width), draw(outputs, inputs, 3, 3), draw(outputs) if bias else None]
    grad = draw(batch, outputs, height, width)
    found = [None if t is None else t.clone().requires_grad_() for t in given]
    exact = [None if t is None else t.double().requires_grad_() for t in given]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y, expected = conv3x3(*found), conv3x3_reference(*exact)
        y.backward(grad)
    finally:
        torch.set_num_threads(before)
    expected.backward(grad.double())
    assert y.dtype is torch.float32 and relative(y, expected) < 1e-5
    for ours, theirs in zip(found, exact, strict=True):
        assert ours is None or relative(ours.grad, theirs.grad) < 1e-5


@needs_avx2
def test_in_float32_any_layout_gives_the_same():
    layer, x = nn.Conv2d(32, 48, 3, padding=1), torch.randn(2, 32, 9, 6)
    expected = conv3x3(x, layer.weight, layer.bias)
    assert torch.equal(conv3x3(x.contiguous(memory_format=torch.channels_last), layer.weight, layer.bias), expected)
    assert torch.equal(conv3x3(x.transpose(2, 3).contiguous().transpose(2, 3), layer.weight, layer.bias), expected)
    layer.to(memory_format=torch.channels_last)
    assert torch.equal(conv3x3(x, layer.weight, layer.bias.repeat_interleave(2)[::2]), expected)
    assert torch.equal(conv3x3(x[1:], layer.weight, layer.bias), expected[1:])  # whatever the batch


@needs_avx2
def test_what_is_differentiated_twice_is_the_librarys():
    x, weight = torch.randn(2, 16, 5, 5, requires_grad=True), torch.randn(16, 16, 3, 3, requires_grad=True)
    slopes = []
    for convolve in (conv3x3, conv3x3_reference):
        slope = torch.autograd.grad(convolve(x, weight).square().sum(), x, create_graph=True)[0]
        slopes.append(torch.autograd.grad(slope.square().sum(), weight)[0])
    assert relative(*slopes) < 1e-5


@needs_avx2
def test_a_forward_pass_in_float32_takes_it_where_it_fits(monkeypatch):
    taken = []
    monkeypatch.setattr(module, "conv3x3", lambda x, *others: taken.append(x.shape) or conv3x3(x, *others))
    x, plain = torch.randn(8, 32, 8, 8), {"kernel_size": 3, "padding": 1}
    fitting = [nn.Conv2d(32, 16, **plain), nn.Conv2d(32, 48, 3, padding="same", bias=False)]
    changes = [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": 0}, {"padding_mode": "reflect"}, {"kernel_size": 1}]
    changes += [{"kernel_size": 5}, {"out_channels": 40}, {"padding": (1, 2)}, {"padding": "valid"}]
    others = [nn.Conv2d(**{"in_channels": 32, "out_channels": 32} | plain | change) for change in changes]
    with forward_pass(CPU, torch.float32):
        for layer in others:
            layer(x)
        fitting[0](x[:1])  # too few tiles to repay the transform of the weights
        fitting[0](torch.randn(99, 32, 1, 2))  # tiles that are mostly outside
        fitting[0].double()(x.double())
        fitting[0].float().bfloat16()(x.bfloat16())
        with kernel_form("reference"):
            fitting[1](x)
        assert not taken
        fitting[0].float()
        for layer in fitting:
            assert relative(layer(x), conv3x3_reference(x.double(), *(p.double() for p in layer.parameters()))) < 1e-5
        assert F.conv2d(x, fitting[0].weight, padding=1, stride=1).shape == (8, 16, 8, 8)
    assert len(taken) == 3
    fitting[0](x)
    with forward_pass(CPU, torch.bfloat16):
        fitting[0](x)
    assert len(taken) == 3


@needs_avx2
@pytest.mark.parametrize("name", ["wrn-16-1", "cifar-resnet18", "convnet-32"])
def test_a_network_trains_on_it_as_on_the_librarys_convolutions(name):
    torch.manual_seed(0)
    network = build_classifier(ModelSpec(name, channels=3, size=32, classes=10)).train()
    images, grads = torch.rand(16, 3, 32, 32), []
    for dtype, mode in ((torch.float32, WinogradConvolutions()), (torch.float32, nullcontext()), (torch.float64, nullcontext())):
        network.to(dtype).zero_grad()
        with mode:
            logits = network(images.to(dtype))
        F.cross_entropy(logits, torch.arange(16) % 10).backward()
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    ours, theirs, exact = grads
    assert relative(ours, exact) < 10 * relative(theirs, exact) + 1e-3  # a ReLU that flips magnifies what rounding leaves


@needs_avx2
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_it_can_be_compiled_and_traced():
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()).eval()
    x = torch.randn(4, 16, 12, 12)
    expected = network(x)
    with WinogradConvolutions():
        traced = torch.jit.trace(network, x)
        assert relative(torch.compile(network, backend="aot_eager")(x), expected) < 1e-5
    assert torch.equal(traced(x), expected)
