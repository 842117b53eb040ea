"""CIFAR-10 and CIFAR-100 in the folders that torchvision unpacks."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.data.readers.reader import Content, Request
from synthesis_kernels.errors import EchosetError

FOLDERS = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100"}
"""Names of folders, and torchvision's classes for them."""


def describe(split: str) -> str:
    """What the layout is called."""
    return "torchvision's cifar-10-batches-py"


def is_at(path: Path, split: str) -> bool:
    """Whether the path itself is such a folder."""
    return path.name in FOLDERS and path.is_dir()


def find_below(root: Path, split: str) -> list[Path]:
    """Such folders in a root folder."""
    return [root / name for name in FOLDERS if (root / name).is_dir()]


def read(path: Path, request: Request) -> Content:
    """Images and labels of a split."""
    # These folders hold pickles; torchvision compares each with the hash of the published file
    # before it opens it.
    from distill.torchvision_shim import torchvision

    kind = getattr(torchvision.datasets, FOLDERS[path.name])
    try:
        data = kind(path.parent, train=request.split == "train")
    except RuntimeError as error:
        raise EchosetError(f"{path}: {kind.__name__} is incomplete or altered ({error})") from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Content(images, torch.tensor(data.targets))
