import pytest
import torch
from torch import nn

from distill.models import ModelSpec, build_classifier
from distill.models.frozen import Frozen
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.conv3x3 import FrozenConv3x3, conv3x3_reference, pays
from synthesis_kernels.native import library

needs_avx512 = pytest.mark.skipif(
    not hasattr(library() or object(), "conv3x3_bfloat16"), reason="needs a processor with AVX-512 bfloat16 and a C++ compiler"
)


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
