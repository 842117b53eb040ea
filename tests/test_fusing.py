"""What a frozen layer takes over from around it, against the network as it was."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from distill.models import Classifier, ModelSpec
from distill.models.frozen import Frozen


class Residual(nn.Module):
    """Sums before norms: one that others need too, one that nobody else needs."""

    def __init__(self, add):
        super().__init__()
        self.add = add
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.norms[0](self.first(x)))
        total = self.add(self.second(x), x)
        inner = self.add(self.third(F.relu(self.norms[1](total))), total)
        return self.head(F.relu(self.norms[2](inner)).mean((2, 3)))


def trained(network):
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return Classifier(network, ModelSpec("test", channels=4, size=8, classes=5)).eval()


def hooked_moments(network, images):
    given = []
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(lambda _, x: given.append(x[0])) for norm in norms]
    logits = network(images)
    for handle in handles:
        handle.remove()
    variances, means = zip(
        *(torch.var_mean(x, (0, 2, 3), correction=0) for x in given), strict=True
    )
    return logits, torch.stack([torch.cat(means), torch.cat(variances)])


def sums(frozen):
    """Those left in the frozen network's graph."""
    graph = frozen.classifier.network.graph
    return [n for n in graph.nodes if n.target in (operator.add, torch.add, "add")]


@pytest.mark.parametrize(
    "add, left",
    [
        (operator.add, 0),
        (torch.add, 0),
        (lambda a, b: a.add(b), 0),
        (lambda a, b: torch.add(a, b, alpha=2), 2),
        (lambda a, b: a + b.mean((2, 3), keepdim=True), 0),  # broadcast: added before the kernel
        (lambda a, b: (a + b.shape[0]) * 1.0 + b, 2),  # the other two have a norm behind them
    ],
    ids=["+", "torch.add", "add", "alpha", "broadcast", "number"],
)
def test_sums_before_norms_are_moved_into_them(add, left):
    teacher = trained(Residual(add))
    frozen = Frozen(teacher)
    assert isinstance(frozen.classifier.network, fx.GraphModule) and len(sums(frozen)) == left
    images = torch.rand(6, 4, 8, 8, requires_grad=True)
    weights = torch.randn(6, 5), torch.randn(2, 12)
    results = frozen.with_moments(images), hooked_moments(teacher, images)
    slopes = [torch.autograd.grad(result, images, weights)[0] for result in results]
    for ours, theirs in zip((*results[0], slopes[0]), (*results[1], slopes[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(frozen(images), results[1][0], rtol=1e-4, atol=1e-5)
    assert all(tap.total is None for tap in frozen._taps.values())


def test_groups_of_a_batch_are_measured_apart():
    frozen = Frozen(trained(Residual(operator.add)))
    images = torch.rand(6, 4, 8, 8)
    logits, moments = frozen.with_moments(images, groups=2)
    torch.testing.assert_close(logits, frozen(images))
    for part, found in zip(images.split(3), moments, strict=True):
        torch.testing.assert_close(found, frozen.with_moments(part)[1])
    target = frozen.target()
    both = target.distance(moments)
    alone = [target.distance(frozen.with_moments(part)[1]) for part in images.split(3)]
    torch.testing.assert_close(both, torch.stack(alone))
