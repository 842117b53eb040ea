"""Where images come from: an address names a source, and a source gives blocks of images by
number.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from distill.data.images import content_hash, load_images
from distill.data.pixels import fit_pixels
from distill.sets.transfer_set import TransferSet, is_set
from distill.sizes import Size, sides
from inversion.sources import DRAWN, Drawer, find_drawer, require_source
from inversion.sources.exposure import expose
from inversion.sources.own import (
    OwnSource,
    check_drawer,
    describe_drawer,
    draws,
    name_sources,
    read_pictures,
)
from inversion.sources.random import Random
from synthesis_kernels.errors import EchosetError

BLOCK = 512
"""Images that are drawn together."""


@dataclasses.dataclass(frozen=True)
class Source(ABC):
    """Images in blocks. Block n is the same whenever it is asked for."""

    address: str
    shape: tuple[int, int, int]
    seed: int
    device: torch.device
    exposed: float = dataclasses.field(default=0.0, kw_only=True)
    """Part of the images shown as figures on black."""

    @property
    @abstractmethod
    def blocks(self) -> int | None:
        """How many blocks there are; None where there is no end."""

    @property
    @abstractmethod
    def content(self) -> str:
        """What its images follow from, beside the seed."""

    @property
    @abstractmethod
    def may_be_exposed(self) -> bool:
        """Whether its images may be shown as figures on black where nobody asked for that."""

    @abstractmethod
    def unexposed(self, number: int) -> Tensor:  # (at most BLOCK, C, H, W) uint8
        """A block as it is before any of it is exposed."""

    def block(self, number: int) -> Tensor:  # (at most BLOCK, C, H, W) uint8
        """Images number·BLOCK and on."""
        return self.shown(self.unexposed(number), number, self.exposed)

    def shown(self, images: Tensor, number: int, exposed: float) -> Tensor:
        """A block with a part of it exposed."""
        if not exposed:
            return images
        random = Random(self.device, "exposure", self.address, self.seed, number)
        return expose(images, random, exposed)


@dataclasses.dataclass(frozen=True)
class DrawnSource(Source):
    """Images drawn from a seed, without end."""

    drawer: Drawer
    own: bool = False
    """Whether it is a user's own, which its address says nothing of."""

    blocks = None
    may_be_exposed = True

    @property
    def content(self) -> str:
        """The address alone: settings are part of it."""
        return describe_drawer(self.drawer) if self.own else self.address

    def unexposed(self, number: int) -> Tensor:
        """Drawn anew each time."""
        random = Random(self.device, self.address, self.seed, number)
        pixels = self.drawer.draw(random, BLOCK, *self.shape)
        return (pixels * 255).round().to(torch.uint8)


@dataclasses.dataclass(frozen=True)
class StoredSource(Source):
    """Stored images, in an order that follows from the seed."""

    stored: Tensor  # (N, C, H, W) uint8, in the order they come
    finished: bool = False
    """Whether it is a transfer set: its images are what somebody chose, and stay as they are."""

    @property
    def blocks(self) -> int:
        """The last one may be smaller."""
        return -(-len(self.stored) // BLOCK)

    @property
    def content(self) -> str:
        """The images' hash."""
        return content_hash(self.stored, None)

    @property
    def may_be_exposed(self) -> bool:
        """Neither a finished set, nor so few images that their classes say little."""
        return not self.finished and len(self.stored) >= BLOCK

    def unexposed(self, number: int) -> Tensor:
        """A part of the stored images."""
        return self.stored[number * BLOCK : (number + 1) * BLOCK].to(self.device)


def open_source(
    address: str,
    channels: int,
    size: Size,
    seed: int = 0,
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> Source:
    """Open `shaders`, `leaves:cover=0.5`, a transfer set, a folder of pictures, or whatever
    `load_images` reads.

    A folder whose name is a source's is given as ./NAME.
    """
    name, _, settings = address.partition(":")
    shape = (channels, *sides(size))
    device = torch.device(device)
    if name in DRAWN:
        return DrawnSource(address, shape, seed, device, _drawer(name, settings))
    require_source(address)
    finished = is_set(address)
    if finished:
        images = fit_pixels(TransferSet.load(address).images, channels, size)
    else:
        images = load_images(address, "train", channels, size, quiet, labelled=False).images
    return StoredSource(address, shape, seed, device, _shuffled(images, seed), finished)


def _shuffled(images: Tensor, seed: int) -> Tensor:
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]


def open_sources(
    sources: Sequence[str | OwnSource],
    channels: int,
    size: Size,
    seed: int,
    device: torch.device,
    quiet: bool,
    most: int = 0,
) -> list[Source]:
    """Several, in order; a source that is named twice would only repeat itself. Of a user's own at
    most so many pictures are read.
    """
    names = name_sources(sources)
    if not names or len(set(names)) < len(names):
        raise EchosetError(
            f"name one source at least, and none twice; got {', '.join(names) or 'none'}"
        )
    opened: list[Source] = []
    for source, name in zip(sources, names, strict=True):
        if isinstance(source, str):
            opened.append(open_source(source, channels, size, seed, device, quiet))
        else:
            opened.append(_open_own(source, name, (channels, size), seed, device, quiet, most))
    return opened


def _open_own(
    source: OwnSource,
    name: str,
    shape: tuple[int, Size],
    seed: int,
    device: torch.device,
    quiet: bool,
    most: int,
) -> Source:
    """A user's own source, which is called by `name`."""
    channels, size = shape
    whole = (channels, *sides(size))
    if draws(source):
        drawer = cast(Drawer, source)
        check_drawer(drawer, name, whole)
        return DrawnSource(name, whole, seed, device, drawer, own=True)
    images = read_pictures(source, name, channels, size, most, quiet)
    return StoredSource(name, whole, seed, device, _shuffled(images, seed))


def _drawer(name: str, settings: str) -> Drawer:
    """The drawer with `key=value,…` in place of its defaults."""
    drawer_class = find_drawer(name)
    known = [field.name for field in dataclasses.fields(drawer_class)]
    values: dict[str, float] = {}
    for part in filter(None, settings.split(",")):
        key, _, text = part.partition("=")
        if key not in known:
            raise EchosetError(
                f"{name} has no setting '{key}'; it has {', '.join(known) or 'none'}"
            )
        values[key] = _read_setting(f"{name}:{key}", text)
    return drawer_class(**values)


def _read_setting(name: str, text: str) -> float:
    """A number above 0 and up to 1, as every setting is."""
    try:
        value = float(text)
    except ValueError:
        raise EchosetError(f"{name}: '{text}' is not a number") from None
    if not 0 < value <= 1:
        raise EchosetError(f"{name} must lie above 0 and up to 1, got {text}")
    return value
