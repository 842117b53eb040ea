"""Images from the layouts people have, labelled or not: to judge students, to train teachers, and
to distil with.

Synthesis reads none of them. Understood as the path itself or under a root folder: `.npz` with
`<split>_images` and `<split>_labels` (or `images` and `labels`; labels may be missing), MNIST's raw
IDX files and those of its kin (Fashion-MNIST, KMNIST), torchvision's CIFAR-10/100 folders, one
folder per class, optionally below the split, and a plain folder of pictures. Other torchvision data
sets that take a root and `train` or `split`: `torchvision:SVHN:ROOT`; anything else through
`from_dataset` in Python.
"""

from __future__ import annotations

import gzip
import inspect
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.loop import StepProgress
from synthesis_kernels.errors import EchosetError

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
MOST_PIXELS = 50_000_000
IDX_NAMES = {"train": "train", "test": "t10k"}
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Images:
    """Images, with their true labels where they have any."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor | None  # (N,) int64
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def fitted(self, channels: int, size: int) -> Images:
        """The same images as a network of `channels` and `size` takes them: grey repeated, colour
        to luma, sides resized.
        """
        return replace(self, images=fit_pixels(self.images, channels, size))

    def chosen(self, index: Tensor) -> Images:
        """The images at these places, with their labels."""
        return replace(
            self,
            images=self.images[index],
            labels=None if self.labels is None else self.labels[index],
        )


def as_images(data: Any, name: str) -> Images:
    """Images as they are, or those of a transfer set with its labels."""
    return data if isinstance(data, Images) else Images(data.images, data.labels, name)


def join(parts: Iterable[Images], name: str) -> Images:
    """Images of one shape as one collection; with labels if all have them."""
    parts = list(parts)
    labels = [part.labels for part in parts if part.labels is not None]
    return Images(
        torch.cat([part.images for part in parts]),
        torch.cat(labels) if len(labels) == len(parts) else None,
        name,
    )


def content_hash(images: Tensor, labels: Tensor | None) -> str:
    """SHA-256 of pixels and labels."""
    digest = sha256(np.ascontiguousarray(images.numpy(force=True)))
    if labels is not None:
        digest.update(np.ascontiguousarray(labels.numpy(force=True)))
    return digest.hexdigest()


# (N, C, H, W) uint8 -> (N, channels, size, size) uint8
def fit_pixels(pixels: Tensor, channels: int, size: int) -> Tensor:
    """Convert between grey and colour, and resize with antialiasing; pixels that fit already come
    back as they are.
    """
    if tuple(pixels.shape[1:]) == (channels, size, size):
        return pixels
    if pixels.shape[1] not in (1, 3) or channels not in (1, 3):
        raise EchosetError(
            f"images have {pixels.shape[1]} channels, the network takes {channels}; only 1 and 3 "
            "can be converted"
        )
    parts = []
    for part in pixels.split(1000):
        part = part.float()
        if part.shape[1] > channels:
            part = (part * torch.tensor(LUMA, device=part.device).view(1, 3, 1, 1)).sum(
                1, keepdim=True
            )
        if tuple(part.shape[2:]) != (size, size):
            part = F.interpolate(
                part, (size, size), mode="bilinear", antialias=True, align_corners=False
            )
        parts.append(part.round().clamp(0, 255).to(torch.uint8).expand(-1, channels, -1, -1))
    return torch.cat(parts)


def load_images(
    root: str | Path,
    split: str = "test",
    channels: int | None = None,
    size: int | None = None,
    quiet: bool = True,
    labelled: bool = True,
) -> Images:
    """Read one split of whatever lies at `root`; with `channels` and `size`, as a network of these
    takes them.

    Pictures of different sizes need `size`. Data without splits are given whole. Where no labels
    are wanted (`labelled` false), folders of pictures may be of any shape.
    """
    if (channels is None) != (size is None) or (size is not None and size < 1):
        raise EchosetError(f"give both channels and size, or neither; got {channels} and {size}")
    named = str(root).startswith("torchvision:")
    fit = (channels, size, quiet)
    data = (
        _read_torchvision(str(root), split, *fit)
        if named
        else _read(Path(root), split, *fit, labelled)
    )
    images, labels = data.images, data.labels
    if len(images) and not images[0].numel():
        raise EchosetError(
            f"{root}: its {len(images)} images have no pixels, but a shape of "
            f"{tuple(images.shape[1:])}"
        )
    if not len(images) or (labels is not None and len(images) != len(labels)):
        raise EchosetError(
            f"{root}: {len(images)} images but {0 if labels is None else len(labels)} labels"
        )
    return data if size is None else data.fitted(channels, size)


def from_dataset(dataset: Iterable[Any], name: str, channels: int = 3, size: int = 32) -> Images:
    """Any torchvision (or other) data set of pictures: items are PIL pictures, uint8 arrays (H, W[,
    C]), uint8 tensors (C, H, W) or such in [0, 1], alone or as (picture, label, …). Labels that are
    not all whole numbers are left out.
    """
    images, labels = [], []
    for number, item in enumerate(dataset):
        picture, label = (
            (item[0], item[1] if len(item) > 1 else None)
            if isinstance(item, tuple | list)
            else (item, None)
        )
        images.append(
            fit_pixels(_to_pixels(picture, f"{name}, item {number}")[None], channels, size)
        )
        labels.append(label)
    if not images:
        raise EchosetError(f"{name} is empty")
    whole = all(
        isinstance(v, int | np.integer) or (getattr(v, "ndim", 1) == 0 and "int" in str(v.dtype))
        for v in labels
    )
    return Images(
        torch.cat(images), torch.tensor([int(label) for label in labels]) if whole else None, name
    )


def _to_pixels(picture: Any, name: str) -> Tensor:  # (C, H, W) uint8
    """One picture in any of the forms that data sets give."""
    if isinstance(picture, Tensor):
        pixels = picture
        if (
            pixels.is_floating_point()
            and pixels.ndim == 3
            and pixels.numel()
            and pixels.min() >= 0
            and pixels.max() <= 1
        ):
            pixels = (pixels * 255).round().to(torch.uint8)
    elif isinstance(picture, np.ndarray):
        pixels = torch.from_numpy(picture[..., None] if picture.ndim == 2 else picture).movedim(
            -1, 0
        )
    elif hasattr(picture, "convert"):
        if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip and not scale
            return torch.from_numpy(
                (np.asarray(picture) / 257).round().clip(0, 255).astype(np.uint8)
            )[None]
        pixels = torch.from_numpy(
            np.array(picture if picture.mode == "L" else picture.convert("RGB"))
        )
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    else:
        raise EchosetError(
            f"{name} is a {type(picture).__name__}, not a picture, an array or a tensor"
        )
    if pixels.dtype is not torch.uint8 or pixels.ndim != 3:
        found = f"{str(pixels.dtype).removeprefix('torch.')} of shape {tuple(picture.shape)}"
        raise EchosetError(f"{name} is {found}; expected uint8, or a tensor (C, H, W) in [0, 1]")
    return pixels


def _read_torchvision(
    address: str, split: str, channels: int | None, size: int | None, quiet: bool
) -> Images:
    """`torchvision:NAME:ROOT`, already downloaded: nothing here reaches for the network."""
    from distill.torchvision_shim import torchvision

    _, name, root = (*address.split(":", 2), "", "")[:3]
    kind = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(kind) or not root:
        raise EchosetError(
            f"'{address}' should be torchvision:NAME:ROOT with NAME a class of "
            "torchvision.datasets, such as SVHN"
        )
    takes = inspect.signature(kind).parameters
    way = (
        {"train": split == "train"}
        if "train" in takes
        else {"split": split}
        if "split" in takes
        else {}
    )
    try:
        dataset = kind(root, **way)
        if size is None:
            channels, size = (f := _to_pixels(dataset[0][0], address)).shape[0], min(f.shape[1:])
        return from_dataset(_watched(dataset, quiet), f"{address} ({split})", channels, size)
    except EchosetError:
        raise
    except Exception as error:  # each data set has its own
        raise EchosetError(
            f"{address}: torchvision cannot read it ({type(error).__name__}: {error})"
        ) from error


def _watched(items: Any, quiet: bool) -> Iterator[Any]:
    """Items by index, with progress: iterating need not end where `len` says."""
    with StepProgress("reading", len(items), quiet) as progress:
        for index in range(len(items)):
            yield items[index]
            progress.update(index + 1)


def _read(
    root: Path, split: str, channels: int | None, size: int | None, quiet: bool, labelled: bool
) -> Images:
    if not root.exists():
        raise EchosetError(f"no data at {root}")
    if root.suffix == ".npz":
        images, labels = _read_npz(root, split, labelled)
    elif found := _find_published(root, split):
        images, labels = _read_cifar(found[0], split) if len(found) == 1 else _read_mnist(*found)
    elif root.is_dir() and any(root.iterdir()):
        images, labels = _read_folders(
            _folder_of(root, split, labelled), channels, size, quiet, labelled
        )
    else:
        raise EchosetError(
            f"{root} is no data set this understands: expected an .npz file, MNIST's raw files "
            f"({IDX_NAMES.get(split, split)}-images-idx3-ubyte), torchvision's "
            "cifar-10-batches-py, or folders of pictures"
        )
    return Images(images, labels, f"{root} ({split}, {len(images)} images)")


def _read_npz(path: Path, split: str, labelled: bool) -> tuple[Tensor, Tensor | None]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            prefix = f"{split}_" if f"{split}_images" in arrays else ""
            if f"{prefix}images" not in arrays:
                raise EchosetError(
                    f"{path} has no '{split}_images' and no 'images'; it has "
                    f"{', '.join(arrays.files)}"
                )
            images, labels = (
                arrays[f"{prefix}images"],
                arrays.get(f"{prefix}labels") if labelled else None,
            )
    except EchosetError:
        raise
    except Exception as error:  # numpy, zip and zlib each have their own
        raise EchosetError(f"{path} is not a readable .npz file: {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise EchosetError(
            f"{path}: images are {images.dtype} {images.shape}; expected uint8 (N,H,W[,C])"
        )
    if labels is not None and labels.shape[1:] == (1,):
        labels = labels[:, 0]
    if labels is not None and (not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1):
        raise EchosetError(
            f"{path}: labels are {labels.dtype} {labels.shape}; expected integers (N,)"
        )
    images = images[..., None] if images.ndim == 3 else images
    numbers = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), numbers


CIFAR = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100"}


def _find_published(root: Path, split: str) -> tuple[Path, ...]:
    """MNIST's two files, or CIFAR's folder, at the path or below it; several would be a choice that
    is not ours.
    """
    if pair := _idx_pair(root, split) or (
        (root,) if root.name in CIFAR and root.is_dir() else None
    ):
        return pair
    places = [root / "raw", *sorted(root.glob("*/raw"))]
    found: list[tuple[Path, ...]] = [
        pair for folder in places if (pair := _idx_pair(folder, split))
    ]
    found += [(root / name,) for name in CIFAR if (root / name).is_dir()]
    if len(found) > 1:
        names = [str(each[0] if len(each) == 1 else each[0].parent) for each in found]
        raise EchosetError(f"{root} holds several data sets; name one of {', '.join(names)}")
    return found[0] if found else ()


def _idx_pair(folder: Path, split: str) -> tuple[Path, Path] | None:
    for suffix in ("", ".gz"):
        pair = [
            folder / f"{IDX_NAMES.get(split, split)}-{kind}-ubyte{suffix}"
            for kind in ("images-idx3", "labels-idx1")
        ]
        if all(p.is_file() for p in pair):
            return pair[0], pair[1]
    return None


def _folder_of(root: Path, split: str, labelled: bool) -> Path:
    """Where the split's pictures are; folders named for other splits must not be taken for
    classes.
    """
    others = [name for name in ("train", "test", "val") if (root / name).is_dir()]
    beside = [
        p
        for p in root.iterdir()
        if p.is_dir() and p.name not in others and not p.name.startswith(".")
    ]
    if labelled and len(others) == 1 and any(map(_pictures, beside)):
        raise EchosetError(
            f"{root}: is '{others[0]}' what to train or test with, or a class like the folders "
            f"beside it? Name {root / others[0]} "
            "and it is taken alone, or give the class another name"
        )
    if (root / split).is_dir():
        return root / split
    if others:
        raise EchosetError(
            f"{root} has no folder '{split}', but {', '.join(others)}; name one of these to use "
            "it whole"
        )
    return root


def _read_mnist(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(_read_idx(images, 3))[:, None], torch.from_numpy(
        _read_idx(labels, 1)
    ).long()


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """MNIST's format: two zero bytes, type (8 = uint8), number of dimensions, big-endian sizes,
    values.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise EchosetError(f"{path} cannot be unpacked: {error}") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes([0, 0, 8, dimensions]):
        raise EchosetError(f"{path} is not an IDX file of {dimensions}-dimensional bytes")
    shape = np.frombuffer(data, ">u4", dimensions, offset=4).tolist()
    if len(data) != header + math.prod(shape):
        raise EchosetError(
            f"{path} should hold {math.prod(shape)} bytes after its header, it holds "
            f"{len(data) - header}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def _read_cifar(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    # These folders hold pickles; torchvision compares each with the hash of the published file
    # before it opens it.
    from distill.torchvision_shim import torchvision

    kind = getattr(torchvision.datasets, CIFAR[folder.name])
    try:
        data = kind(folder.parent, train=split == "train")
    except RuntimeError as error:
        raise EchosetError(
            f"{folder}: {kind.__name__} is incomplete or altered ({error})"
        ) from error
    return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)


def _read_folders(
    folder: Path, channels: int | None, size: int | None, quiet: bool, labelled: bool
) -> tuple[Tensor, Tensor | None]:
    """One folder per class, or pictures side by side without labels; where no labels are wanted,
    all pictures at any depth.
    """
    from PIL import Image

    classes = _classes(folder) if labelled else []
    places = [
        (path, label)
        for label, place in enumerate(classes)
        if place.is_dir()
        for path in _pictures(place)
    ]
    loose = (
        _pictures(folder)
        if labelled
        else sorted(p for deep in [folder, *_folders(folder)] for p in _pictures(deep))
    )
    if places and loose:
        raise EchosetError(f"{loose[0]} lies beside folders of classes; move it into one, or away")
    places = places or [(path, None) for path in loose]
    images: list[Tensor] = []
    for path, _ in _watched(places, quiet):
        try:
            # By its content, too: some readers start other programs
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise ValueError(
                        f"{picture.width} × {picture.height} pixels are more than "
                        f"{MOST_PIXELS:,}; make it smaller"
                    )
                pixels = _to_pixels(picture, str(path))
        except Exception as error:  # Pillow's readers raise many kinds
            raise EchosetError(f"{path} is not a readable picture: {error}") from error
        if size is not None:
            pixels = fit_pixels(pixels[None], channels, size)[0]
        elif images and pixels.shape != images[0].shape:
            found = f"{tuple(pixels.shape)}, the pictures before it {tuple(images[0].shape)}"
            same = "grey or all colour" if pixels.shape[1:] == images[0].shape[1:] else "one size"
            raise EchosetError(f"{path} is {found}; make them all {same}")
        images.append(pixels)
    if not images:
        raise EchosetError(
            f"{folder} has no pictures in it ({', '.join(sorted(PICTURES))}), nor folders of them"
        )
    labels = None if places[0][1] is None else torch.tensor([label for _, label in places])
    return torch.stack(images).contiguous(), labels


def _classes(folder: Path) -> list[Path]:
    """The folders of classes in the order of their labels: where there is a train split beside that
    has them all, that one's, so that a class without pictures in this split moves no other one
    up.
    """
    mine, place = _directories(folder), Path(os.path.abspath(folder))
    full = {directory.name for directory in mine if _pictures(directory)}
    trained = place.parent / "train"
    theirs = _directories(trained) if place.name in ("test", "val") and trained.is_dir() else []
    known = {directory.name for directory in theirs if _pictures(directory)}
    if not full & known:  # no split beside, or one of another layout
        theirs, known = [], set()
    if known and full - known and known - full:
        one, other = min(full - known), min(known - full)
        raise EchosetError(
            f"{trained} lacks the class '{one}' of {folder}, which lacks '{other}'; give both "
            "splits both"
        )
    counted = full | known
    if full and (
        empty := [directory for directory in (*mine, *theirs) if directory.name not in counted]
    ):
        raise EchosetError(
            f"{empty[0]} is a class without pictures, and nothing beside it says whether it "
            "counts; add some, or remove it if the "
            "network does not know that class"
        )
    return [folder / name for name in sorted(counted)] if full else mine


def _directories(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    """All folders below, without hidden ones and what lies in them."""
    return [
        p
        for p in folder.rglob("*")
        if p.is_dir() and not any(n.startswith(".") for n in p.relative_to(folder).parts)
    ]


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")
    )
