"""Data sets on disk that tests read."""

import struct

import numpy as np
from PIL import Image

PIXELS = np.arange(3 * 5 * 5, dtype=np.uint8).reshape(3, 5, 5)
LABELS = np.array([2, 0, 1], np.uint8)


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


GREY = np.arange(0, 252, 7, dtype=np.uint8).reshape(6, 6)
COLOUR = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)


def write_pictures(folder, *pictures):
    """0.png, 1.png, … of arrays or Pillow pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(
            folder / f"{number}.png"
        )
    return folder


def write_mnist(folder):
    """All four files of MNIST: three images of 5 × 5 to test, two to train."""
    folder.mkdir(parents=True)
    for name, images, labels in (("t10k", PIXELS, LABELS), ("train", 255 - PIXELS[:2], LABELS[:2])):
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
