"""A network that tells hues pixel by pixel, and sets of label maps made by it."""

import numpy as np
import torch
from torch import nn

from distill import Classifier, ModelSpec
from distill.sets.shards import write_shard
from distill.sets.transfer_set import write_manifest
from distill.tasks.places import decide

SIZE = (16, 24)
NAMES = ("red roof", "grass", "water", "night")
COUNT = 24


class Hues(nn.Module):
    """Red, green, blue or dark, pixel by pixel."""

    def __init__(self, channels=3, classes=4):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, classes, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(0.01)
            for channel in range(3):
                self.first[0].weight[channel, channel, 1, 1] = 4.0
                self.first[1].weight[channel] = 1.0
                self.head.weight[channel, channel] = 2.0
            self.head.bias[3] = 3.0
            self.first[1].running_mean.fill_(0.1)
            self.first[1].running_var.fill_(1.5)

    def forward(self, images):
        return self.head(self.first(images).relu())


def patches(count=COUNT, seed=0):
    """Images of six patches of one hue each."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 2, 3), generator=random, dtype=torch.uint8)
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)


def hues_teacher():
    notes = {"class_names": list(NAMES)}
    spec = ModelSpec(
        "hues.Hues",
        channels=3,
        size=SIZE,
        classes=4,
        task="segmentation",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        notes=notes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Hues()
    return Classifier(network, spec).eval().requires_grad_(False)


def write_set(folder, teacher, images, **more):
    """A finished set of these images."""
    folder.mkdir(parents=True)
    logits = teacher(images.float() / 255)
    labels = decide(logits).to(torch.uint8)
    tensors = {
        "images": images,
        "labels": labels,
        "logits": logits.half(),
        "priority": torch.arange(len(images)).float(),
        "round": torch.zeros(len(images), dtype=torch.int32),
    }
    name = "shard-00000-of-00001.safetensors"
    digest = write_shard(folder / name, tensors)
    counts = torch.bincount(labels.flatten().long(), minlength=4).tolist()
    manifest = {
        "teacher": {"model": "hues", "weight_hash": teacher.weight_hash()},
        "input": teacher.input,
        "counts": counts,
        "short": {},
        "shards": [{"file": name, "count": len(images), "sha256": digest, "seconds": 1.0}],
        "config": {},
        "code_version": "0",
        **more,
    }
    write_manifest(folder, manifest)
    return folder


def same_map(picture, label):
    return picture.mode == "P" and (np.asarray(picture) == label.numpy()).all()
