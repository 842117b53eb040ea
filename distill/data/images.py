"""Images from the layouts people have, labelled or not: to judge students, to train teachers, and
to distil with.

Synthesis reads none of them. What is understood, as the path itself or under a root folder, is in
`distill.data.readers`; other torchvision data sets that take a root and `train` or `split` are
named as `torchvision:SVHN:ROOT`; anything else comes through `from_dataset` in Python.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distill.data.maps import Maps as Maps
from distill.data.maps import fit_maps
from distill.data.pixels import fit_pixels, stack_items
from distill.data.readers import read_path
from distill.data.readers.reader import Request
from distill.data.readers.torchvision_name import PREFIX, read_named
from distill.sizes import Size, read_size
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from distill.sets.transfer_set import TransferSet


@dataclass(frozen=True)
class Images:
    """Images, with their true labels where they have any."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor | None  # (N, *places) int64
    name: str
    folders: tuple[str, ...] | None = None
    """Names of the folders that the labels number, where they were read from such."""
    matched: str = ""
    """How a network's classes were found for these folders, once they were."""

    def __len__(self) -> int:
        return len(self.images)

    def fitted(self, channels: int, size: Size) -> Images:
        """The same images as a network of `channels` and `size` takes them: grey repeated, colour
        to luma, sides resized, and label maps with them.
        """
        labels = self.labels
        if labels is not None and labels.shape[1:] == self.images.shape[2:]:
            labels = fit_maps(labels, size)
        return replace(self, images=fit_pixels(self.images, channels, size), labels=labels)

    def chosen(self, index: Tensor) -> Images:
        """The images at these places, with their labels."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels)


def as_images(data: TransferSet | Images, name: str) -> Images:
    """Images as they are, or those of a transfer set with its labels."""
    if isinstance(data, Images):
        return data
    return Images(data.images, data.labels, name)


def join(parts: Iterable[Images], name: str) -> Images:
    """Images of one shape as one collection; with labels if all have them."""
    parts = list(parts)
    images = torch.cat([part.images for part in parts])
    labels = [part.labels for part in parts if part.labels is not None]
    if len(labels) < len(parts):
        return Images(images, None, name)
    return Images(images, torch.cat(labels), name)


def content_hash(images: Tensor, labels: Tensor | None) -> str:
    """SHA-256 of pixels and labels."""
    digest = sha256(_bytes_of(images))
    if labels is not None:
        digest.update(_bytes_of(labels))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    return np.ascontiguousarray(tensor.numpy(force=True)).data


def load_images(
    root: str | Path,
    split: str = "test",
    channels: int | None = None,
    size: Size | None = None,
    quiet: bool = True,
    labelled: bool = True,
    maps: Maps | None = None,
) -> Images:
    """Read one split of whatever lies at `root`; with `channels` and `size`, as a network of these
    takes them.

    `size` is the side of square images, or height and width. Pictures of different sizes need it.
    Data without splits are given whole. Where no labels are wanted (`labelled` false), folders of
    pictures may be of any shape. With `maps` labels are label maps, as segmentation has them.
    """
    request = Request(split, _shape_of(channels, size), quiet, labelled, maps)
    data = _read(root, request)
    _check_read(data, root)
    if request.shape is None:
        return data
    return data.fitted(*request.shape)


def from_dataset(dataset: Iterable[Any], name: str, channels: int = 3, size: Size = 32) -> Images:
    """Any torchvision (or other) data set of pictures: items are PIL pictures, uint8 arrays (H, W[,
    C]), uint8 tensors (C, H, W) or such in [0, 1], alone or as (picture, label, …). Labels that are
    not all whole numbers are left out.
    """
    images, labels = stack_items(dataset, name, channels, read_size(size))
    return Images(images, labels, name)


def _shape_of(channels: int | None, size: Size | None) -> tuple[int, Size] | None:
    if channels is None and size is None:
        return None
    if channels is None or size is None:
        raise EchosetError(f"give both channels and size, or neither; got {channels} and {size}")
    return channels, read_size(size)


def _read(root: str | Path, request: Request) -> Images:
    address = str(root)
    if address.startswith(PREFIX):
        images, labels, _ = read_named(address, request)
        return Images(images, labels, f"{address} ({request.split})")
    path = Path(root)
    images, labels, folders = read_path(path, request)
    name = f"{path} ({request.split}, {len(images)} images)"
    return Images(images, labels, name, folders)


def _check_read(data: Images, root: str | Path) -> None:
    """Refuse what has no images, no pixels, or not one label an image."""
    images = data.images
    if len(images) and not images[0].numel():
        raise EchosetError(
            f"{root}: its {len(images)} images have no pixels, but a shape of "
            f"{tuple(images.shape[1:])}"
        )
    labels = 0 if data.labels is None else len(data.labels)
    if not len(images) or (data.labels is not None and len(images) != labels):
        raise EchosetError(f"{root}: {len(images)} images but {labels} labels")
