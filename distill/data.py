"""Labelled real images from the layouts people have: for judging students and training teachers, never for synthesis.

Understood under a root folder (or as the path itself): `.npz` with `<split>_images` and `<split>_labels` (or `images` and
`labels`), MNIST's raw IDX files, torchvision's CIFAR-10/100 folders, and one folder per class, optionally below the split.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthesis_kernels.errors import EchosetError

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
IDX_NAMES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class LabelledImages:
    """Real images with their true labels."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64
    name: str

    def __len__(self) -> int:
        return len(self.images)


def load_images(root: str | Path, split: str = "test") -> LabelledImages:
    """Read one split of whatever data set lies at `root`."""
    root = Path(root)
    if not root.exists():
        raise EchosetError(f"no data at {root}")
    if root.suffix == ".npz":
        images, labels = _read_npz(root, split)
    elif (idx := _find_idx(root, split)) is not None:
        images, labels = torch.from_numpy(_read_idx(idx[0], 3))[:, None], torch.from_numpy(_read_idx(idx[1], 1)).long()
    elif (root / "cifar-10-batches-py").is_dir() or (root / "cifar-100-python").is_dir():
        images, labels = _read_cifar(root, split)
    elif root.is_dir() and any(p.is_dir() for p in (root / split if (root / split).is_dir() else root).iterdir()):
        images, labels = _read_folders(root / split if (root / split).is_dir() else root)
    else:
        raise EchosetError(
            f"{root} is no data set this understands: expected an .npz file, MNIST's raw files "
            f"({IDX_NAMES[split]}-images-idx3-ubyte), torchvision's cifar-10-batches-py, or one folder of pictures per class"
        )
    if len(images) != len(labels) or not len(images):
        raise EchosetError(f"{root}: {len(images)} images but {len(labels)} labels")
    return LabelledImages(images, labels, f"{root} ({split}, {len(images)} images)")


def _read_npz(path: Path, split: str) -> tuple[Tensor, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            prefix = f"{split}_" if f"{split}_images" in arrays else ""
            if f"{prefix}images" not in arrays or f"{prefix}labels" not in arrays:
                raise EchosetError(f"{path} has no '{split}_images' and '{split}_labels'; it has {', '.join(arrays.files)}")
            images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    except EchosetError:
        raise
    except Exception as error:  # numpy, zip and zlib each have their own
        raise EchosetError(f"{path} is not a readable .npz file: {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise EchosetError(
            f"{path}: images are {images.dtype} {images.shape}, labels {labels.dtype} {labels.shape}; expected uint8 (N,H,W[,C])"
        )
    images = images[..., None] if images.ndim == 3 else images
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))


def _find_idx(root: Path, split: str) -> tuple[Path, Path] | None:
    for folder in (root, root / "raw", root / "MNIST" / "raw"):
        for suffix in ("", ".gz"):
            pair = [folder / f"{IDX_NAMES[split]}-{kind}-ubyte{suffix}" for kind in ("images-idx3", "labels-idx1")]
            if all(p.is_file() for p in pair):
                return pair[0], pair[1]
    return None


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """MNIST's format: two zero bytes, type (8 = uint8), number of dimensions, big-endian sizes, values."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise EchosetError(f"{path} cannot be unpacked: {error}") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes([0, 0, 8, dimensions]):
        raise EchosetError(f"{path} is not an IDX file of {dimensions}-dimensional bytes")
    shape = np.frombuffer(data, ">u4", dimensions, offset=4).astype(np.int64)
    if len(data) != header + int(shape.prod()):
        raise EchosetError(f"{path} should hold {int(shape.prod())} bytes after its header, it holds {len(data) - header}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def _read_cifar(root: Path, split: str) -> tuple[Tensor, Tensor]:
    # These folders hold pickles; torchvision compares each with the hash of the published file before it opens it.
    from distill.torchvision_shim import torchvision

    kind = torchvision.datasets.CIFAR10 if (root / "cifar-10-batches-py").is_dir() else torchvision.datasets.CIFAR100
    try:
        data = kind(root, train=split == "train")
    except RuntimeError as error:
        raise EchosetError(f"{root}: {kind.__name__} is incomplete or altered ({error})") from error
    return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)


def _read_folders(folder: Path) -> tuple[Tensor, Tensor]:
    from PIL import Image

    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    images, labels = [], []
    for label, directory in enumerate(classes):
        for path in sorted(p for p in directory.iterdir() if p.suffix.lower() in PICTURES):
            try:
                with Image.open(path) as picture:
                    pixels = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
            except Exception as error:  # Pillow's readers raise many kinds
                raise EchosetError(f"{path} is not a readable picture: {error}") from error
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
            if images and pixels.shape != images[0].shape:
                raise EchosetError(f"{path} is {pixels.shape}, the pictures before it {images[0].shape}; make them all one size")
            images.append(pixels)
            labels.append(label)
    if not images:
        raise EchosetError(f"{folder} has folders but no pictures in them ({', '.join(sorted(PICTURES))})")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)
