"""Collecting in tests: a linear teacher whose last class is rare, and plain options."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from distill import Classifier, ModelSpec
from distill.runtime import Runtime
from inversion.options import CollectOptions
from inversion.sources.collect import collect
from inversion.sources.stream import open_source

PLAIN = CollectOptions(images=40, draws=60.0, short=(), expose=0.0)
SCARCE = replace(PLAIN, images=60, draws=5.0)
"""One block of noise, which has nine images of the last class."""
FLAGS = [
    "--source",
    "smooth",
    "--images=30",
    "--collection.draws=40",
    "--collection.expose=0.5",
    "--seed=1",
    "--device=cpu",
]
"""A small set, on the command line."""


def linear_teacher(last=-3.0):
    """Four classes; `last` is the last one's bias."""
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(144, 4)
    layer.weight.data = 0.12 * torch.randn(4, 144, generator=generator)
    layer.bias.data = torch.tensor([0.0, 0.3, -0.3, last])
    spec = ModelSpec("linear", channels=1, size=12, classes=4, mean=(0.5,), std=(0.25,))
    return Classifier(nn.Sequential(nn.Flatten(), layer), spec)


def make(teacher, sources, options, out, **more):
    """Collect quietly, on the CPU."""
    runtime = Runtime(device="cpu", quiet=True, **more)
    return collect(teacher, sources, options, out, runtime=runtime)


def shard_bytes(folder):
    """What is in a set's shards."""
    return [path.read_bytes() for path in sorted(folder.glob("shard-*.safetensors"))]


def answers_of(teacher, images):
    """The linear teacher's logits by numpy, in double precision."""
    layer = teacher.network[1]
    weight = layer.weight.detach().double().numpy()
    bias = layer.bias.detach().double().numpy()
    inputs = (images.numpy().reshape(len(images), -1) / 255 - 0.5) / 0.25
    return inputs @ weight.T + bias


def save_pictures(path):
    """700 coloured pictures of another size."""
    soft = open_source("smooth", 3, 10, seed=9)
    images = torch.cat([soft.block(0), soft.block(1)])[:700].permute(0, 2, 3, 1)
    np.savez(path, images=images.numpy())
    return str(path)
