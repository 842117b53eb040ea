"""Where images come from: an address names a source, and a source gives blocks of images by
number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from distill.data.images import content_hash, fit_pixels, load_images
from distill.sets.transfer_set import TransferSet, is_set
from inversion.sources import DRAWN, Drawer, find_drawer
from inversion.sources.exposure import expose
from inversion.sources.random import Random
from synthesis_kernels.errors import EchosetError

BLOCK = 512
"""Images that are drawn together."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Images drawn from a seed, or stored ones in an order that follows from it. Block n is the
    same whenever it is asked for.
    """

    address: str
    shape: tuple[int, int, int]
    seed: int
    device: torch.device
    drawer: Drawer | None = None
    stored: Tensor | None = None  # (N, C, H, W) uint8, in the order they come
    finished: bool = False
    """Whether it is a transfer set: its images are what somebody chose, and stay as they are."""
    exposed: float = 0.0
    """Part of the images shown as figures on black."""

    @property
    def blocks(self) -> int | None:
        """How many blocks there are; None where there is no end."""
        return None if self.stored is None else -(-len(self.stored) // BLOCK)

    @property
    def content(self) -> str:
        """What its images follow from, beside the seed: their hash, or the address where they are
        drawn.
        """
        return self.address if self.stored is None else content_hash(self.stored, None)

    def block(self, number: int) -> Tensor:  # (at most BLOCK, C, H, W) uint8
        """Images number·BLOCK and on."""
        if self.stored is not None:
            images = self.stored[number * BLOCK : (number + 1) * BLOCK].to(self.device)
        else:
            random = Random(self.device, self.address, self.seed, number)
            images = (
                (self.drawer.draw(random, BLOCK, self.shape[0], self.shape[1]) * 255)
                .round()
                .to(torch.uint8)
            )
        return self.shown(images, number, self.exposed)

    def shown(self, images: Tensor, number: int, exposed: float) -> Tensor:
        """A block with a part of it exposed."""
        return (
            expose(
                images, Random(self.device, "exposure", self.address, self.seed, number), exposed
            )
            if exposed
            else images
        )


def open_source(
    address: str,
    channels: int,
    size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> Source:
    """Open `shaders`, `leaves:cover=0.5`, a transfer set, a folder of pictures, or whatever
    `load_images` reads.

    A folder whose name is a source's is given as ./NAME.
    """
    name, _, settings = address.partition(":")
    common = (address, (channels, size, size), seed, torch.device(device))
    if name in DRAWN:
        return Source(*common, drawer=_drawer(name, settings))
    if not address.startswith("torchvision:") and not Path(address).exists():
        close = get_close_matches(name, DRAWN, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise EchosetError(
            f"no source '{address}': it is neither {', '.join(DRAWN)}, nor a file or folder{hint}"
        )
    finished = is_set(address)
    if finished:
        images = fit_pixels(TransferSet.load(address).images, channels, size)
    else:
        images = load_images(address, "train", channels, size, quiet, labelled=False).images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return Source(*common, stored=images[order], finished=finished)


def open_sources(
    addresses: Sequence[str], channels: int, size: int, seed: int, device: torch.device, quiet: bool
) -> list[Source]:
    """Several, in order; a source that is named twice would only repeat itself."""
    if not addresses or len(set(addresses)) < len(addresses):
        raise EchosetError(
            f"name one source at least, and none twice; got {', '.join(addresses) or 'none'}"
        )
    return [open_source(address, channels, size, seed, device, quiet) for address in addresses]


def _drawer(name: str, settings: str) -> Drawer:
    """The drawer with `key=value,…` in place of its defaults."""
    drawer_class = find_drawer(name)
    known = {field.name: field.default for field in dataclasses.fields(drawer_class)}
    values = {}
    for part in filter(None, settings.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise EchosetError(
                f"{name} has no setting '{key}'; it has {', '.join(known) or 'none'}"
            )
        try:
            values[key] = float(value)
        except ValueError:
            raise EchosetError(f"{name}:{key}: '{value}' is not a number") from None
        if not 0 < values[key] <= 1:
            raise EchosetError(f"{name}:{key} must lie above 0 and up to 1, got {value}")
    return drawer_class(**values)
