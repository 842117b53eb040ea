"""A frozen network whose convolutions run together with what is around them, against the network
as it was.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from convolving import PRECISIONS, needs_avx2, relative
from torch import nn

from distill.models import Classifier, ModelSpec
from distill.models.frozen import Frozen
from distill.models.joining import Joined
from distill.models.zoo.resnet import CifarResNet
from distill.models.zoo.vgg import CifarVGG11
from distill.models.zoo.wrn import WideResNet
from synthesis_kernels import native
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.errors import EchosetError


class Branches(nn.Module):
    """One input of a norm that three others need as well, and sums with what can't be added in the
    kernel.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))
        self.convolutions = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        x = self.stem(images)
        y = self.convolutions[0](F.relu(self.norms[0](x))) + x
        # A sum over one axis alone is spread over the map.
        z = self.convolutions[1](self.norms[1](y)) + x.mean((2, 3), keepdim=True)
        z = x + self.convolutions[2](self.norms[2](z)) + y
        return self.head((z * x).mean((2, 3)))


class Chooses(Branches):
    """Can't be traced."""

    def forward(self, images):
        return super().forward(images if images.sum() > 0 else -images)


BUILDS = {
    "wrn": lambda: WideResNet(depth=10),
    "resnet": lambda: CifarResNet(blocks=(1, 1)),
    "vgg": lambda: CifarVGG11(size=16),
    "branches": Branches,
    "untraceable": Chooses,
}
JOINED = {"wrn": 4, "resnet": 2, "vgg": 3, "branches": 3, "untraceable": 0}


def teacher(name):
    network = BUILDS[name]()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
            layer.bias.data.uniform_(-0.2, 0.4)
    return Classifier(network, ModelSpec(name, channels=3, size=16, classes=10)).eval()


def moments_by_hand(network, images, groups):
    """Logits and moments, as (groups, 2, ΣC)."""
    given = []
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(lambda _, x: given.append(x[0])) for norm in norms]
    logits = network(images)
    for handle in handles:
        handle.remove()
    parts = [[torch.var_mean(p, (0, 2, 3), correction=0) for p in x.chunk(groups)] for x in given]
    moments = [
        torch.stack([torch.cat([layer[g][i] for layer in parts]) for i in (1, 0)])
        for g in range(groups)
    ]
    return logits, torch.stack(moments)


def results(frozen, images, groups):
    """Logits, perhaps moments, and the gradient of a mixture of both."""
    images = images.clone().requires_grad_()
    told = None
    if groups is None:
        logits = frozen(images)
    else:
        logits, told = frozen.with_moments(images, groups)
    return [logits, told, _slope(logits, told, images)]


def results_by_hand(network, images, groups):
    images = images.double().requires_grad_()
    network = copy.deepcopy(network).double()
    logits, told = moments_by_hand(network, images, groups or 1)
    told = None if groups is None else told
    return [logits, told, _slope(logits, told, images)]


def _slope(logits, told, images):
    luck = torch.Generator().manual_seed(0)
    total = (logits.double() * torch.randn(logits.shape, generator=luck)).sum()
    if told is not None:
        total = total + (told.double() * torch.randn(told.shape, generator=luck)).sum()
    return torch.autograd.grad(total, images)[0]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("groups", [None, 1, 2])
@pytest.mark.parametrize("name", BUILDS)
def test_a_frozen_network_gives_what_the_network_gives(name, groups, precision):
    original = teacher(name)
    images = torch.rand(4, 3, 16, 16) + 0.01
    exact = results_by_hand(original, images, groups)
    frozen = Frozen(original, precision)
    joined = [layer for layer in frozen.modules() if isinstance(layer, Joined)]
    assert len(joined) == JOINED[name]
    ours = results(frozen, images, groups)
    with kernel_form("reference"):
        plain = results(Frozen(original, precision), images, groups)
    for one, other, wanted in zip(ours, plain, exact, strict=True):
        if wanted is not None:
            # A ReLU that flips magnifies what rounding leaves.
            assert relative(one, wanted) < 3 * relative(other, wanted) + 2e-4
    assert all(layer.total is None for layer in joined)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_kernel_is_what_runs_where_it_pays(precision):
    frozen = Frozen(teacher("wrn"), precision)
    names = []
    listen = lambda kernel, name, arguments: names.append(name)  # noqa: E731
    native.listeners.append(listen)
    try:
        results(frozen, torch.rand(8, 3, 32, 32), 1)
        many = names.count("conv3x3_backward")
        results(frozen, torch.rand(1, 3, 4, 4), 1)
    finally:
        native.listeners.remove(listen)
    assert many >= 4 and names.count("conv3x3_backward") == many


@pytest.mark.parametrize("precision", PRECISIONS)
def test_small_images_are_answered_too(precision):
    original = teacher("wrn")
    images = torch.rand(2, 3, 5, 7)
    exact = results_by_hand(original, images, 1)
    ours = results(Frozen(original, precision), images, 1)
    limit = 1e-4 if precision is torch.float32 else 0.05
    for one, wanted in zip(ours, exact, strict=True):
        assert relative(one, wanted) < limit


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_takes_over_what_changes_in_the_network(precision):
    original = teacher("wrn")
    frozen = Frozen(original, precision)
    images = torch.rand(4, 3, 16, 16)
    before = frozen(images)
    with torch.no_grad():
        for tensor in (*original.parameters(), *original.buffers()):
            if tensor.is_floating_point() and tensor.ndim:
                tensor.mul_(1.1)
    frozen.refresh()
    fresh = Frozen(original, precision)(images)
    assert torch.equal(frozen(images), fresh) and not torch.equal(fresh, before)


@needs_avx2
def test_hooks_on_convolutions_and_relus_are_heard():
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    original = Classifier(network, ModelSpec("test", channels=3, size=16, classes=16)).eval()
    images = torch.rand(4, 3, 16, 16)
    expected = original(images)
    heard = []
    for place in (2, 3):
        network[place].register_forward_hook(lambda *_, place=place: heard.append(place))
    frozen = Frozen(original)
    torch.testing.assert_close(frozen(images), expected, rtol=1e-4, atol=1e-5)
    assert heard == [2, 3]


@needs_avx2
def test_a_hook_that_comes_later_is_heard():
    frozen = Frozen(teacher("wrn"))
    heard = []
    joined = next(layer for layer in frozen.modules() if isinstance(layer, Joined))
    joined.convolution.register_forward_hook(lambda *_: heard.append(1))
    frozen.with_moments(torch.rand(4, 3, 16, 16))
    assert heard == [1]


@needs_avx2
def test_a_layer_that_runs_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, padding=1)
            self.norm, self.convolution = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, images):
            x = self.stem(images)
            for _ in range(2):
                x = self.convolution(self.norm(x).relu()) + x
            return x.mean((2, 3))

    original = Classifier(Twice(), ModelSpec("test", channels=3, size=16, classes=16)).eval()
    frozen = Frozen(original)
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(frozen(images), original(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(EchosetError, match="runs twice"):
        frozen.with_moments(images)
