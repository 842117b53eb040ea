"""NumPy's archives: `<split>_images` and `<split>_labels`, or `images` and `labels`; labels may be
missing.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.data.maps import Maps, to_labels
from distill.data.readers.reader import Content, Request
from distill.limits import require_room
from synthesis_kernels.errors import EchosetError


def describe(split: str) -> str:
    """What the layout is called."""
    return "an .npz file"


def is_at(path: Path, split: str) -> bool:
    """Whether the path itself is such data."""
    return path.suffix == ".npz"


def find_below(root: Path, split: str) -> list[Path]:
    """An archive is named itself."""
    return []


def read(path: Path, request: Request) -> Content:
    """Images and labels of an archive."""
    images, labels = _load(path, request)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise EchosetError(
            f"{path}: images are {images.dtype} {images.shape}; expected uint8 (N,H,W[,C])"
        )
    if images.ndim == 3:
        images = images[..., None]
    numbers = None if labels is None else _to_numbers(labels, path, request.maps)
    return Content(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), numbers)


def _load(path: Path, request: Request) -> tuple[np.ndarray, np.ndarray | None]:
    split = request.split
    if not path.is_file():
        raise EchosetError(f"{path} is no file")
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
            prefix = f"{split}_" if f"{split}_images" in arrays else ""
            if f"{prefix}images" not in arrays:
                raise EchosetError(
                    f"{path} has no '{split}_images' and no 'images'; it has "
                    f"{', '.join(arrays.files)}"
                )
            images = _read_array(f"{prefix}images", archive, arrays, path)
            labels = None
            if request.labelled and f"{prefix}labels" in arrays:
                labels = _read_array(f"{prefix}labels", archive, arrays, path)
    except EchosetError:
        raise
    except Exception as error:  # numpy, zip and zlib each have their own
        raise EchosetError(f"{path} is not a readable .npz file: {error}") from error
    return images, labels


def _read_array(
    name: str, archive: zipfile.ZipFile, arrays: Mapping[str, np.ndarray], path: Path
) -> np.ndarray:
    """An array, once its header has told how large it is."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, kind = read(member)
    require_room(math.prod(shape) * kind.itemsize, path, f"'{name}' of shape {shape}")
    return arrays[name]


# (N,) or (N, 1) -> (N,) int64, of maps (N, H, W)
def _to_numbers(labels: np.ndarray, path: Path, maps: Maps | None) -> Tensor:
    if maps is not None and labels.ndim == 3 and np.issubdtype(labels.dtype, np.integer):
        found = torch.from_numpy(labels.astype(np.int64))
        for place, each in enumerate(found):
            to_labels(each, f"{path}, labels[{place}]", maps)
        return found
    if labels.shape[1:] == (1,):
        labels = labels[:, 0]
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        expected = "integers (N,)" if maps is None else "integers (N,H,W)"
        raise EchosetError(f"{path}: labels are {labels.dtype} {labels.shape}; expected {expected}")
    return torch.from_numpy(labels.astype(np.int64))
