"""A BatchNorm in training runs with its ReLU in one kernel, and nobody notices."""

import copy

import pytest
import torch
from conftest import needs_native
from torch import fx, nn

from distill.models import ModelSpec, build_classifier
from distill.models.zoo import blocks
from distill.models.zoo.blocks import Layers, norm_act, trains_alone
from distill.taps import Taps, find_stages
from inversion.parts.generator import Generator
from synthesis_kernels.backend import kernel_form

NETWORKS = [
    "wrn-16-1",
    "cifar-resnet18",
    "cifar-vgg11",
    "cifar-mobilenetv2",
    "convnet-16",
    "lenet5",
]


def classifier(name):
    spec = ModelSpec(name, channels=3, size=32, classes=10)
    return build_classifier(spec).to(memory_format=torch.channels_last)


def step(network, images, form):
    """What a step of training gives, and leaves behind."""
    network = copy.deepcopy(network).train()
    with kernel_form(form):
        answers = network(images)
        answers.square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    return answers, network.state_dict(), gradients


@needs_native
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_of_training_is_the_same(name):
    network = classifier(name).double()
    images = torch.rand(6, 3, 32, 32, dtype=torch.float64)
    ours, state, gradients = step(network, images, "native")
    exact, kept, expected = step(network, images, "reference")
    torch.testing.assert_close(ours, exact)
    torch.testing.assert_close(dict(state), dict(kept), rtol=1e-6, atol=1e-8)
    scale = max(gradient.abs().max() for gradient in expected)
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-6 * scale)


@needs_native
@pytest.mark.parametrize("name", NETWORKS)
def test_every_batch_norm_in_training_is_in_the_kernel(name, monkeypatch):
    calls = []
    counted = [(blocks, "bn_train"), (blocks, "bn_train_sum"), (blocks.NormConv3x3, "apply")]
    for owner, kernel in counted:
        run = getattr(owner, kernel)
        count = lambda *given, run=run, **named: calls.append(1) or run(*given, **named)  # noqa: E731
        monkeypatch.setattr(owner, kernel, count)
    network = classifier(name)
    layers = [layer for layer in network.modules() if type(layer) in blocks.NORMS]
    network.train()(torch.rand(2, 3, 32, 32))
    assert len(calls) == len(layers)
    network.eval()(torch.rand(2, 3, 32, 32))
    assert len(calls) == len(layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_hooks_hear_every_layer(name):
    network = classifier(name).train()
    heard = []
    for key, layer in network.network.named_modules():
        if not isinstance(layer, nn.Sequential):
            layer.register_forward_hook(lambda *_, key=key: heard.append(key))
    network(torch.rand(2, 3, 32, 32))
    with_hooks = set(heard)
    named = {
        k for k, one in network.network.named_modules() if type(one) in (*blocks.NORMS, nn.ReLU)
    }
    assert named <= with_hooks


@pytest.mark.parametrize("name", NETWORKS)
def test_taps_hear_in_training_what_a_plain_network_gives(name):
    network = classifier(name)
    stages = find_stages(network)
    heard = []
    images = torch.rand(4, 3, 32, 32)
    for form in ("auto", "reference"):
        copied = copy.deepcopy(network).train()
        with kernel_form(form), Taps(copied, stages) as taps:
            copied(images)
        heard.append(taps.maps)
    for ours, exact in zip(*heard, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wide_network_gives_the_same_where_its_blocks_are_heard(dtype):
    network = classifier("wrn-22-1").train()
    images = torch.rand(4, 3, 32, 32)
    results = []
    for place in (None, 2):
        copied = copy.deepcopy(network)
        if place is not None:
            copied.network.blocks[place].register_forward_hook(lambda *_: None)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            logits = copied(images).float()
        logits.square().sum().backward()
        results.append([logits.detach(), copied.network.stem.weight.grad])
    rough = 1e-3 if dtype is torch.float32 else 5e-2
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() <= rough * other.norm()


class Recorded(nn.BatchNorm2d):
    """A BatchNorm of another class."""


def test_who_trains_alone():
    x = torch.rand(2, 3, 4, 4)
    assert trains_alone(nn.BatchNorm2d(3), x)
    assert not trains_alone(nn.BatchNorm2d(3).eval(), x)
    assert not trains_alone(Recorded(3), x)
    assert not trains_alone(nn.BatchNorm2d(3, affine=False), x)
    assert not trains_alone(nn.BatchNorm2d(3, momentum=None), x)
    assert not trains_alone(nn.BatchNorm2d(3, track_running_stats=False), x)
    assert not trains_alone(nn.GroupNorm(3, 3), x)
    heard = nn.BatchNorm2d(3)
    heard.register_forward_pre_hook(lambda *_: None)
    assert not trains_alone(heard, x)
    seen = []
    torch.func.vmap(lambda one: seen.append(trains_alone(nn.BatchNorm2d(3), one)) or one)(x[None])
    assert seen == [False]


def test_a_network_in_training_can_be_traced():
    network = Layers(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    nodes = [str(node.target) for node in fx.symbolic_trace(network).graph.nodes]
    assert nodes == ["input_1", "0", "1", "2", "output"] or nodes[1:-1] == ["0", "1", "2"]


def test_it_can_be_differentiated_twice():
    norm = nn.BatchNorm2d(3).double().train()
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: norm_act(norm, x, 0.2), x)


@needs_native
def test_the_generator_gives_the_same_images():
    generator = Generator(3, 32, 10, latent=16, width=8).to(memory_format=torch.channels_last)
    noise, wanted = torch.randn(6, 16), torch.arange(6)
    images = []
    for form in ("auto", "reference"):
        with kernel_form(form):
            images.append(copy.deepcopy(generator).train()(noise, wanted, wanted))
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-5)
