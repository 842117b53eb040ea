"""Small pictures with label maps: dark, grey and bright patches, and a stripe where nothing is known."""

import numpy as np
from PIL import Image
from torch import nn

from distill import Classifier, ModelSpec, save_classifier

CLASSES = 3
VOID = 9
SIZE = (12, 16)


class Dense(nn.Module):
    """Tells brightness, pixel by pixel, at half the size."""

    def __init__(self, channels: int = 3, classes: int = CLASSES) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        x = self.first(x).relu()
        x = self.second(x).relu()
        return self.head(x)


def draw(random, size=SIZE):
    """A picture (H, W, 3), and its label map (H, W)."""
    coarse = random.integers(0, CLASSES, (2, 4))
    labels = np.kron(coarse, np.ones((size[0] // 2, size[1] // 4), int)).astype(np.uint8)
    noise = random.integers(-20, 20, (*size, 3))
    image = (40 + 80 * labels[..., None] + noise).astype(np.uint8)
    labels[:, 3] = VOID
    return image, labels


def write_pairs(folder, count, seed=0, size=SIZE):
    """Folders images and labels of so many pictures."""
    random = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image, labels = draw(random, size)
        Image.fromarray(image).save(folder / "images" / f"{number:03d}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{number:03d}.png")
    return folder


def write_splits(root):
    """The same in splits of 24, 6 and 8."""
    for seed, (split, count) in enumerate({"train": 24, "val": 6, "test": 8}.items()):
        write_pairs(root / split, count, seed)
    return root


def save_network(path, network):
    """A dense network as a file."""
    spec = ModelSpec(
        "roads.Dense",
        channels=3,
        size=SIZE,
        classes=CLASSES,
        task="segmentation",
        mean=(0.5,) * 3,
        std=(0.3,) * 3,
        notes={"class_names": ["tar", "kerb", "sky"]},
    )
    save_classifier(Classifier(network, spec), path)
    return path
