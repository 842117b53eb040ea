"""Where Winograd's convolution is taken for the library's, and that nobody notices."""

from collections import Counter
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from convolving import PRECISIONS, drawn, needs_avx2, needs_avx512, relative
from torch import nn

from distill import DistillOptions, Images, distill
from distill.evaluation import predict
from distill.models import ModelSpec, build_classifier
from distill.models.zoo.convnet import ConvNet
from distill.models.zoo.resnet import CifarResNet
from distill.models.zoo.wrn import WideResNet
from distill.runtime import Runtime
from inversion import SynthesisOptions, synthesize
from inversion.bench.limits import Multiplications
from inversion.options import AdversaryOptions, GeneratorOptions
from synthesis_kernels import conv3x3 as module
from synthesis_kernels import native
from synthesis_kernels.backend import forward_pass, kernel_form
from synthesis_kernels.bn_match import bn_match
from synthesis_kernels.conv3x3 import (
    WinogradConvolutions,
    conv3x3,
    conv3x3_reference,
    has_layer,
    pays,
)
from synthesis_kernels.narrow_conv3x3 import narrow_conv3x3
from synthesis_kernels.norm_conv3x3 import NormConv3x3

CPU = torch.device("cpu")
PLAIN = {"kernel_size": 3, "padding": 1}
CHANGES = [
    {"stride": 2},
    {"dilation": 2},
    {"groups": 2},
    {"padding": 0},
    {"padding_mode": "reflect"},
    {"kernel_size": 1},
    {"kernel_size": 5},
    {"out_channels": 40},
    {"padding": (1, 2)},
    {"padding": "valid"},
]


def changed(change):
    return nn.Conv2d(**{"in_channels": 32, "out_channels": 32} | PLAIN | change)


@contextmanager
def heard():
    """How often native kernels run, by name."""
    counts = Counter()
    listen = lambda kernel, name, arguments: counts.update([name])  # noqa: E731
    native.listeners.append(listen)
    try:
        yield counts
    finally:
        native.listeners.remove(listen)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_that_it_computes(precision):
    assert has_layer(nn.Conv2d(32, 16, **PLAIN), precision)
    assert has_layer(nn.Conv2d(32, 48, 3, padding="same", bias=False), precision)
    assert not any(has_layer(changed(change), precision) for change in CHANGES)
    assert not has_layer(nn.Conv2d(40, 40, **PLAIN), precision)
    assert not has_layer(nn.Conv2d(3, 16, **PLAIN), precision)
    assert not has_layer(nn.ConvTranspose2d(32, 32, **PLAIN), precision)
    assert not has_layer(nn.ReLU(), precision)
    assert not has_layer(nn.Conv2d(32, 16, **PLAIN), torch.float16)
    with kernel_form("reference"):
        assert not has_layer(nn.Conv2d(32, 16, **PLAIN), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_where_it_pays(precision):
    weight = torch.randn(32, 32, 3, 3)
    tiles = module.LEAST_TILES[precision]
    side = module.SIDE[precision]
    assert pays(torch.empty(tiles, 32, side, side, dtype=precision), weight)
    assert not pays(torch.empty(tiles - 1, 32, side, side, dtype=precision), weight)
    assert not pays(torch.empty(999, 32, 1, 1, dtype=precision), weight)
    assert not pays(torch.empty(0, 32, side, side, dtype=precision), weight)


@needs_avx2
def test_a_forward_pass_in_float32_takes_it_where_it_fits():
    x = drawn(0, 8, 32, 8, 8)
    fitting = [nn.Conv2d(32, 16, **PLAIN), nn.Conv2d(32, 48, 3, padding="same", bias=False)]
    with heard() as counts, forward_pass(CPU, torch.float32):
        for change in CHANGES:
            changed(change)(x)
        fitting[0](x[:1])  # too few tiles to repay the transform of the weights
        fitting[0](torch.randn(99, 32, 1, 2))  # tiles that are mostly outside
        fitting[0].double()(x.double())
        fitting[0].float().bfloat16()(x.bfloat16())
        with kernel_form("reference"):
            fitting[1](x)
        assert counts["conv3x3"] == 0
        fitting[0].float()
        for layer in fitting:
            exact = conv3x3_reference(x.double(), *(p.double() for p in layer.parameters()))
            assert relative(layer(x), exact) < 1e-5
        assert F.conv2d(x, fitting[0].weight, padding=1, stride=1).shape == (8, 16, 8, 8)
    assert counts["conv3x3"] == 3
    with heard() as counts:
        fitting[0](x)
        with forward_pass(CPU, torch.float32):
            torch.func.vmap(fitting[0])(x[None])
    assert not counts


@needs_avx512
def test_autocast_to_bfloat16_takes_it_too():
    x, layer = drawn(0, 16, 32, 8, 8), nn.Conv2d(32, 16, **PLAIN)
    exact = conv3x3_reference(x.double(), *(p.double() for p in layer.parameters()))
    for region in (
        forward_pass(CPU, torch.bfloat16),
        _Both(forward_pass(CPU, torch.float32), torch.autocast("cpu", torch.bfloat16)),
    ):
        with heard() as counts, region:
            y = layer(x)
        assert counts == {"conv3x3": 1}
        assert y.dtype is torch.bfloat16 and relative(y, exact) < 8e-3
    with heard() as counts, forward_pass(CPU, torch.float32), torch.autocast("cpu", torch.float16):
        layer(x)
    assert not counts


class _Both:
    def __init__(self, *regions):
        self.regions = regions

    def __enter__(self):
        for region in self.regions:
            region.__enter__()

    def __exit__(self, *error):
        for region in reversed(self.regions):
            region.__exit__(*error)


def test_what_follows_may_change_the_result_in_place():
    """As students with ReLU(inplace=True) do, or a residual block that adds to its last
    convolution.
    """
    x, layer = drawn(0, 8, 16, 8, 8), nn.Conv2d(16, 16, **PLAIN)
    slopes = []
    for region in (forward_pass(CPU, torch.float32), nullcontext()):
        with region:
            y = layer(x)
            y += x
            y.relu_()
        slopes.append(torch.autograd.grad(y.square().sum(), layer.weight)[0])
    assert relative(*slopes) < 1e-4
    y = bn_match(x.requires_grad_(), torch.ones(16), torch.zeros(16))[0]
    y += 1
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones_like(x))


def test_what_does_not_fit_together_gets_the_librarys_error():
    weight = torch.randn(16, 16, 3, 3)
    with forward_pass(CPU, torch.float32):
        for channels, bias in ((3, 16), (32, 16), (24, 16), (16, 8)):
            with pytest.raises(RuntimeError):
                F.conv2d(torch.randn(8, channels, 8, 8), weight, torch.randn(bias), padding=1)
        with pytest.raises(RuntimeError):
            F.conv2d(torch.randn(8, 16, 8, 8), weight, torch.randn(16).double(), padding=1)
        with pytest.raises(TypeError):
            F.conv2d(torch.randn(8, 16, 8, 8), padding=1)


def normed(x, weight):
    kept = (torch.ones(16), torch.zeros(16), torch.zeros(16), torch.ones(16), torch.tensor(0))
    return NormConv3x3.apply(x, *kept, weight, None, None, 0.1, 1e-5)


@needs_avx2
@pytest.mark.parametrize(
    "convolve, outputs", [(conv3x3, 32), (conv3x3_reference, 32), (normed, 32), (narrow_conv3x3, 3)]
)
def test_each_is_worth_what_the_librarys_is(convolve, outputs):
    x, weight = drawn(0, 2, 16, 8, 8).requires_grad_(), drawn(1, outputs, 16, 3, 3)
    with Multiplications() as flops:
        convolve(x, weight.requires_grad_()).sum().backward()
    assert flops.get_total_flops() == 3 * 2 * 9 * 2 * 8 * 8 * 16 * outputs


@needs_avx2
@pytest.mark.parametrize(
    "build",
    [lambda: WideResNet(depth=10), lambda: CifarResNet(blocks=(1, 1)), lambda: ConvNet(3, 10, 32)],
    ids=["wrn", "resnet", "convnet"],
)
def test_a_network_trains_on_it_as_on_the_librarys_convolutions(build):
    network = build().train()
    images, grads = torch.rand(16, 3, 16, 16), []
    for dtype, mode in (
        (torch.float32, WinogradConvolutions()),
        (torch.float32, nullcontext()),
        (torch.float64, nullcontext()),
    ):
        network.to(dtype).zero_grad()
        with mode:
            logits = network(images.to(dtype))
        F.cross_entropy(logits, torch.arange(16) % 10).backward()
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    ours, theirs, exact = grads
    # A ReLU that flips magnifies what rounding leaves.
    assert relative(ours, exact) < 10 * relative(theirs, exact) + 1e-3


@needs_avx2
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_it_can_be_compiled_and_traced():
    network = nn.Sequential(nn.Conv2d(16, 16, **PLAIN), nn.ReLU()).eval()
    x = torch.randn(4, 16, 12, 12)
    expected = network(x)
    with WinogradConvolutions():
        traced = torch.jit.trace(network, x)
        assert torch.equal(torch.compile(network, backend="aot_eager", fullgraph=True)(x), expected)
    assert torch.equal(traced(x), expected)


@needs_avx2
def test_teachers_students_and_generators_run_on_it(tmp_path):
    spec = ModelSpec("convnet-16", channels=3, size=16, classes=4)
    teacher, student = build_classifier(spec, 0), build_classifier(spec, 1)
    teacher.train()(torch.rand(64, 3, 16, 16))  # for running statistics
    generator = GeneratorOptions(latent=8, width=16, blocks=1)
    adversary = AdversaryOptions(steps=3)
    sizes = {"images": 4, "batch": 32, "calls": 2, "patience": 2}
    options = SynthesisOptions(**sizes, generator=generator, adversary=adversary)
    runtime = Runtime(device="cpu", precision="float32", step="eager", quiet=True)
    with heard() as counts:
        synthesize(teacher, options, tmp_path / "set", runtime=runtime)
    assert counts["conv3x3"] > 40 and counts["conv3x3_backward"] > 10
    assert counts["upsample_conv_weight"] > 10
    pictures = Images(torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8), None, "noise")
    options = DistillOptions(steps=3, batch=32, views_per_image=1)
    with heard() as counts:
        distill(student, pictures, teacher, options, runtime=runtime)
    assert counts["conv3x3_weight"] == 3 * 3  # a convnet-16 has three such convolutions
    with heard() as counts:
        predict(student, pictures.images, CPU)
    assert counts["conv3x3"] == 3
