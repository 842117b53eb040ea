from collections import Counter
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as some
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from distill import DistillOptions, Images, distill
from distill.evaluation import predict
from distill.models import ModelSpec, build_classifier
from distill.models.frozen import Frozen
from distill.runtime import Runtime
from inversion import SynthesisOptions, synthesize
from inversion.bench.limits import convolution_counts
from inversion.options import GeneratorOptions
from synthesis_kernels import conv3x3 as module
from synthesis_kernels import native
from synthesis_kernels.backend import forward_pass, kernel_form
from synthesis_kernels.bn_match import bn_match
from synthesis_kernels.conv3x3 import WinogradConvolutions, conv3x3, conv3x3_reference
from synthesis_kernels.frozen_conv3x3 import FrozenConv3x3, pays
from synthesis_kernels.native import library

needs_avx512 = pytest.mark.skipif(
    not hasattr(library() or object(), "conv3x3_bfloat16"),
    reason="needs a processor with AVX-512 bfloat16 and a C++ compiler",
)
needs_avx2 = pytest.mark.skipif(
    not hasattr(library() or object(), "conv3x3_float32"),
    reason="needs a processor with AVX2 and a C++ compiler",
)
CPU = torch.device("cpu")


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@needs_avx512
@pytest.mark.parametrize(
    "inputs, outputs, height, width",
    [(32, 32, 8, 8), (48, 32, 7, 9), (32, 80, 1, 1), (64, 48, 5, 2), (128, 128, 4, 4)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_winograd_is_the_convolution_and_its_gradient(inputs, outputs, height, width, bias):
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    x = torch.randn(3, inputs, height, width).to(torch.bfloat16).requires_grad_()
    grad = torch.randn(3, outputs, height, width).to(torch.bfloat16)
    exact = x.detach().double().requires_grad_()
    expected = conv3x3_reference(
        exact, layer.weight.double(), layer.bias.double() if bias else None
    )
    fast = FrozenConv3x3(layer)
    for form, tolerance in (("native", 8e-3), ("reference", 5e-3)):  # of bfloat16: eight bits
        with kernel_form(form):
            y = fast(x)
        assert y.dtype is torch.bfloat16 and relative(y, expected) < tolerance
        found, wanted = (
            torch.autograd.grad(*pair, g)
            for *pair, g in ((y, x, grad), (expected, exact, grad.double()))
        )
        assert relative(found[0], wanted[0]) < tolerance
        expected = conv3x3_reference(
            exact, layer.weight.double(), layer.bias.double() if bias else None
        )


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
    assert (
        not pays(nn.Conv2d(16, 64, **plain))
        and not pays(nn.Conv2d(40, 40, **plain))
        and not pays(nn.ReLU())
    )


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
def test_in_float32_it_is_the_convolution_with_all_gradients(
    batch, inputs, outputs, height, width, bias, threads, seed
):
    luck = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=luck)  # noqa: E731
    given = [
        draw(batch, inputs, height, width),
        draw(outputs, inputs, 3, 3),
        draw(outputs) if bias else None,
    ]
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
    assert torch.equal(
        conv3x3(x.contiguous(memory_format=torch.channels_last), layer.weight, layer.bias), expected
    )
    assert torch.equal(
        conv3x3(x.transpose(2, 3).contiguous().transpose(2, 3), layer.weight, layer.bias), expected
    )
    layer.to(memory_format=torch.channels_last)
    assert torch.equal(conv3x3(x, layer.weight, layer.bias.repeat_interleave(2)[::2]), expected)
    assert torch.equal(conv3x3(x[1:], layer.weight, layer.bias), expected[1:])  # whatever the batch


@needs_avx2
@pytest.mark.parametrize("wide", [8, 16])
def test_it_is_right_whatever_a_register_holds(tmp_path, monkeypatch, wide):
    """16 numbers, as with AVX-512, can be had of any processor by the compiler; then 16 channels
    are half of what is packed.
    """
    monkeypatch.setenv("ECHOSET_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", [*native.FLAGS, f"-DWIDE={wide}"])
    monkeypatch.setattr(native, "library", native._Library())
    for inputs, outputs in ((16, 48), (48, 16), (32, 80)):
        given = (
            torch.randn(2, inputs, 9, 7),
            torch.randn(outputs, inputs, 3, 3),
            torch.randn(outputs),
        )
        found, exact = (
            [t.clone().requires_grad_() for t in given],
            [t.double().requires_grad_() for t in given],
        )
        y, expected = conv3x3(*found), conv3x3_reference(*exact)
        assert y.grad_fn.name() == "_WinogradBackward" and relative(y, expected) < 1e-5
        grads = [
            torch.autograd.grad(out.square().sum(), into)
            for out, into in ((y, found), (expected, exact))
        ]
        for ours, theirs in zip(*grads, strict=True):
            assert relative(ours, theirs) < 1e-5


@needs_avx2
def test_the_same_bytes_again_and_the_answers_for_any_number_of_threads():
    x, weight, before = (
        torch.randn(5, 48, 17, 6),
        torch.randn(32, 48, 3, 3, requires_grad=True),
        torch.get_num_threads(),
    )
    answers, slopes = [], []
    try:
        for threads in (1, 2, 2, 5):
            torch.set_num_threads(threads)
            answers.append(conv3x3(x, weight))
            slopes.append(torch.autograd.grad(answers[-1].square().sum(), weight)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, answers[0]) for each in answers)
    assert torch.equal(slopes[1], slopes[2]) and relative(slopes[0], slopes[3]) < 1e-5


@needs_avx2
@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "x bias", "weight bias"])
@pytest.mark.parametrize("outputs", [16, 4112])  # the latter are too many weights to add up
def test_only_the_gradients_that_are_wanted(wanted, outputs):
    given = {
        "x": torch.randn(2, 16, 5, 6),
        "weight": torch.randn(outputs, 16, 3, 3),
        "bias": torch.randn(outputs),
    }
    found = {name: t.clone().requires_grad_(name in wanted.split()) for name, t in given.items()}
    exact = {name: t.double().requires_grad_(name in wanted.split()) for name, t in given.items()}
    conv3x3(*found.values()).sum().backward()  # a gradient that is one number, expanded
    conv3x3_reference(*exact.values()).sum().backward()
    for name in given:
        assert (found[name].grad is not None) == (name in wanted.split())
        assert found[name].grad is None or relative(found[name].grad, exact[name].grad) < 1e-5


def test_what_follows_may_change_the_result_in_place():
    """As students with ReLU(inplace=True) do, or a residual block that adds to its last
    convolution.
    """
    torch.manual_seed(0)
    x, layer = torch.randn(8, 16, 8, 8), nn.Conv2d(16, 16, 3, padding=1)
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
    with forward_pass(CPU, torch.float32):
        for channels, bias in ((3, 16), (32, 16), (24, 16), (16, 8)):
            with pytest.raises(RuntimeError):
                F.conv2d(
                    torch.randn(8, channels, 8, 8),
                    torch.randn(16, 16, 3, 3),
                    torch.randn(bias),
                    padding=1,
                )
        with pytest.raises(RuntimeError):
            F.conv2d(
                torch.randn(8, 16, 8, 8),
                torch.randn(16, 16, 3, 3),
                torch.randn(16).double(),
                padding=1,
            )


@needs_avx2
def test_a_frozen_layer_keeps_no_maps_and_a_trained_one_its_input():
    x, weight = torch.randn(2, 16, 5, 5, requires_grad=True), torch.randn(16, 16, 3, 3)
    assert conv3x3(x, weight).grad_fn.saved_tensors[0] is None
    assert conv3x3(x, weight.requires_grad_()).grad_fn.saved_tensors[0] is x


@needs_avx2
def test_it_is_worth_what_the_librarys_is():
    x, weight, counts = (
        torch.randn(2, 16, 8, 8, requires_grad=True),
        torch.randn(32, 16, 3, 3, requires_grad=True),
        [],
    )
    for convolve in (conv3x3, conv3x3_reference):
        with FlopCounterMode(display=False, custom_mapping=convolution_counts()) as flops:
            convolve(x, weight).sum().backward()
        counts.append(flops.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 9 * 2 * 8 * 8 * 16 * 32


@needs_avx2
def test_what_is_differentiated_twice_is_the_librarys():
    x, weight = (
        torch.randn(2, 16, 5, 5, requires_grad=True),
        torch.randn(16, 16, 3, 3, requires_grad=True),
    )
    slopes = []
    for convolve in (conv3x3, conv3x3_reference):
        slope = torch.autograd.grad(convolve(x, weight).square().sum(), x, create_graph=True)[0]
        slopes.append(torch.autograd.grad(slope.square().sum(), weight)[0])
    assert relative(*slopes) < 1e-5
    slopes = []
    for convolve in (conv3x3, conv3x3_reference):
        slope = torch.autograd.grad(
            convolve(x, weight.detach()).pow(3).sum(), x, create_graph=True
        )[0]
        slopes.append(torch.autograd.grad(slope.square().sum(), x)[0])
    assert relative(*slopes) < 1e-5


@needs_avx2
def test_a_forward_pass_in_float32_takes_it_where_it_fits(monkeypatch):
    taken = []
    whole = module._Winograd.apply
    monkeypatch.setattr(
        module._Winograd, "apply", lambda x, *others: taken.append(x.shape) or whole(x, *others)
    )
    x, plain = torch.randn(8, 32, 8, 8), {"kernel_size": 3, "padding": 1}
    fitting = [nn.Conv2d(32, 16, **plain), nn.Conv2d(32, 48, 3, padding="same", bias=False)]
    changes = [
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"padding": 0},
        {"padding_mode": "reflect"},
        {"kernel_size": 1},
    ]
    changes += [{"kernel_size": 5}, {"out_channels": 40}, {"padding": (1, 2)}, {"padding": "valid"}]
    others = [
        nn.Conv2d(**{"in_channels": 32, "out_channels": 32} | plain | change) for change in changes
    ]
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
            assert (
                relative(
                    layer(x),
                    conv3x3_reference(x.double(), *(p.double() for p in layer.parameters())),
                )
                < 1e-5
            )
        assert F.conv2d(x, fitting[0].weight, padding=1, stride=1).shape == (8, 16, 8, 8)
    assert len(taken) == 3
    fitting[0](x)
    with forward_pass(CPU, torch.bfloat16):
        fitting[0](x)
    with forward_pass(CPU, torch.float32), torch.autocast("cpu", torch.bfloat16):
        assert fitting[0](x).dtype is torch.bfloat16
    with forward_pass(CPU, torch.float32):
        torch.func.vmap(fitting[0])(x[None])
    assert len(taken) == 3


@needs_avx2
@pytest.mark.parametrize("name", ["wrn-16-1", "cifar-resnet18", "convnet-32"])
def test_a_network_trains_on_it_as_on_the_librarys_convolutions(name):
    torch.manual_seed(0)
    network = build_classifier(ModelSpec(name, channels=3, size=32, classes=10)).train()
    images, grads = torch.rand(16, 3, 32, 32), []
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
    assert (
        relative(ours, exact) < 10 * relative(theirs, exact) + 1e-3
    )  # a ReLU that flips magnifies what rounding leaves


@needs_avx2
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_it_can_be_compiled_and_traced():
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()).eval()
    x = torch.randn(4, 16, 12, 12)
    expected = network(x)
    with WinogradConvolutions():
        traced = torch.jit.trace(network, x)
        assert torch.equal(torch.compile(network, backend="aot_eager", fullgraph=True)(x), expected)
    assert torch.equal(traced(x), expected)


class Seen(TorchDispatchMode):
    """How often operations run, by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.counts[operation.name().removeprefix("echoset::")] += 1
        return operation(*args, **(kwargs or {}))


@needs_avx2
def test_teachers_students_and_generators_run_on_it(tmp_path):
    spec = ModelSpec("convnet-16", channels=3, size=16, classes=4)
    teacher, student = build_classifier(spec, 0), build_classifier(spec, 1)
    teacher.train()(torch.rand(64, 3, 16, 16))  # for running statistics
    generator = GeneratorOptions(latent=8, width=16, blocks=1)
    options = SynthesisOptions(images=4, batch=32, calls=2, patience=2, generator=generator)
    with Seen() as seen:
        synthesize(
            teacher,
            options,
            tmp_path / "set",
            runtime=Runtime(device="cpu", precision="float32", step="eager", quiet=True),
        )
    assert seen.counts["conv3x3_float32"] > 50 and seen.counts["conv3x3_weight_float32"] > 10
    pictures = Images(torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8), None, "noise")
    with Seen() as seen:
        runtime = Runtime(device="cpu", precision="float32", step="eager", quiet=True)
        distill(
            student,
            pictures,
            teacher,
            DistillOptions(steps=3, batch=32, views_per_image=1),
            runtime=runtime,
        )
    assert (
        seen.counts["conv3x3_weight_float32"] == 3 * 3
    )  # a convnet-16 has three such convolutions
    with Seen() as seen:
        predict(student, pictures.images, CPU)
    assert seen.counts["conv3x3_float32"] == 3
