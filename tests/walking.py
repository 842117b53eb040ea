"""What tests of the boundary attack share: teachers whose boundaries are known."""

from dataclasses import fields

import numpy as np
import torch
from torch import nn

from distill.models import Classifier, ModelSpec
from distill.models.frozen import Frozen
from inversion.sources.boundary import BoundarySamples

SIDE = 4
PIXELS = SIDE * SIDE


def linear(weight, bias, scale=1.0):
    """z = scale·(Wx + b) of images in [0, 1]."""
    layer = nn.Linear(PIXELS, len(bias))
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(np.array(weight)) * scale)
        layer.bias.copy_(torch.as_tensor(np.array(bias)) * scale)
    return Classifier(
        nn.Sequential(nn.Flatten(), layer), ModelSpec("linear", size=SIDE, classes=len(bias))
    ).eval()


def random_linear(seed, classes, scale=1.0):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(classes, PIXELS))
    return linear(
        weight, -weight.sum(1) / 2 + 0.1 * rng.normal(size=classes), scale
    )  # about even in the middle of the range


def pictures(seed, count, low=0, high=256):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(low, high, (count, 1, SIDE, SIDE), dtype=np.uint8)
    )


def leads(network, pixels, target):
    """In float64: how far the target leads each other class, in levels of distance to the boundary
    with it. (N, K − 1)
    """
    layer = network.network[1]
    weight = layer.weight.detach().double().numpy()
    bias = layer.bias.detach().double().numpy()
    logits = pixels.flatten(1).double().numpy() / 255 @ weight.T + bias
    rows = []
    for row, t in zip(logits, target, strict=True):
        others = [k for k in range(len(bias)) if k != t]
        rows.append(
            [
                (row[t] - row[k]) / np.linalg.norm(weight[t] - weight[k]) * 255 / np.sqrt(PIXELS)
                for k in others
            ]
        )
    return np.array(rows)


def all_targets(count, classes):
    return torch.arange(classes).expand(count, classes).contiguous()


def count_asks(monkeypatch):
    """How many images the search asks the teacher about, as a list that grows."""
    asked = []
    forward = Frozen.forward
    monkeypatch.setattr(
        Frozen, "forward", lambda self, images: asked.append(len(images)) or forward(self, images)
    )
    return asked


def same(one, other):
    return all(
        torch.equal(getattr(one, field.name), getattr(other, field.name))
        for field in fields(BoundarySamples)
    )
