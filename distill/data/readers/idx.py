"""MNIST's raw IDX files and those of its kin (Fashion-MNIST, KMNIST), packed or not."""

from __future__ import annotations

import gzip
import math
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch

from distill.data.readers.reader import Content, Request
from distill.limits import require_room
from synthesis_kernels.errors import EchosetError

NAMES = {"train": "train", "test": "t10k"}
"""What the files call a split."""


def describe(split: str) -> str:
    """What the layout is called."""
    return f"MNIST's raw files ({_file_name(split, 'images-idx3')})"


def is_at(path: Path, split: str) -> bool:
    """Whether the folder holds the two files of a split."""
    return _find_pair(path, split) is not None


def find_below(root: Path, split: str) -> list[Path]:
    """Folders called raw, as torchvision makes them, that hold the two files of a split."""
    folders = [root / "raw", *sorted(root.glob("*/raw"))]
    return [folder for folder in folders if is_at(folder, split)]


def read(path: Path, request: Request) -> Content:
    """Images and labels of a folder's two files."""
    pair = _find_pair(path, request.split)
    if pair is None:
        raise EchosetError(f"{path} does not hold {describe(request.split)}")
    images, labels = pair
    pixels = torch.from_numpy(_read_file(images, 3))[:, None]
    return Content(pixels, torch.from_numpy(_read_file(labels, 1)).long())


def _file_name(split: str, kind: str) -> str:
    return f"{NAMES.get(split, split)}-{kind}-ubyte"


def _find_pair(folder: Path, split: str) -> tuple[Path, Path] | None:
    for suffix in ("", ".gz"):
        images = folder / f"{_file_name(split, 'images-idx3')}{suffix}"
        labels = folder / f"{_file_name(split, 'labels-idx1')}{suffix}"
        if images.is_file() and labels.is_file():
            return images, labels
    return None


def _read_file(path: Path, dimensions: int) -> np.ndarray:
    """MNIST's format: two zero bytes, type (8 = uint8), number of dimensions, big-endian sizes,
    values.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read_values(file, path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise EchosetError(f"{path} cannot be unpacked: {error}") from error


def _read_values(file: BufferedIOBase, path: Path, dimensions: int) -> np.ndarray:
    header = file.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
        raise EchosetError(f"{path} is not an IDX file of {dimensions}-dimensional bytes")
    shape = np.frombuffer(header, ">u4", dimensions, offset=4).tolist()
    count = math.prod(shape)
    held = path.stat().st_size - len(header)
    if path.suffix != ".gz" and held != count:
        raise EchosetError(f"{path} should hold {count} bytes after its header, it holds {held}")
    require_room(count, path, f"its {' × '.join(map(str, shape))} values")
    values = np.empty(count, np.uint8)
    read = file.readinto(values.data)
    if read < count or file.read(1):
        more = f"{read}" if read < count else "more"
        raise EchosetError(f"{path} should hold {count} bytes after its header, it holds {more}")
    return values.reshape(shape)
