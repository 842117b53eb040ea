"""A user's own sources, from Python: a data set, any iterable of pictures, or what draws them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Protocol, TypeAlias, cast

from torch import Tensor

from distill.data.pixels import fit_pixels, stack_items
from distill.loop import StepProgress
from distill.own import identify
from distill.sizes import Size
from inversion.sources import Drawer
from inversion.sources.random import Random
from synthesis_kernels.errors import EchosetError


class Pictures(Protocol):
    """Stored images, as `Images` and a transfer set have them."""

    @property
    def images(self) -> Tensor:  # (N, C, H, W) uint8
        """The images."""


OwnSource: TypeAlias = Iterable[Any] | Drawer | Pictures
"""Pictures, alone or with labels, which are not read; or an object with `draw`."""


def name_sources(sources: Iterable[str | OwnSource]) -> list[str]:
    """Addresses as they are; of a user's own its `name`, or that of its class. Of one name all but
    the first are numbered.
    """
    names: list[str] = []
    for source in sources:
        if isinstance(source, str):
            names.append(source)
            continue
        own = getattr(source, "name", None)
        name = own if isinstance(own, str) else type(source).__name__
        alike = sum(taken.partition(" #")[0] == name for taken in names)
        names.append(f"{name} #{alike + 1}" if alike else name)
    return names


def draws(source: OwnSource) -> bool:
    """Whether the source draws images without end."""
    return callable(getattr(source, "draw", None))


def describe_drawer(drawer: Drawer) -> str:
    """What a drawer's images follow from, beside the seed: its class, and its settings if it is a
    dataclass.
    """
    is_data = dataclasses.is_dataclass(drawer)
    return f"{identify(drawer)} {drawer!r}" if is_data else identify(drawer)


def check_drawer(drawer: Drawer, name: str, shape: tuple[int, int, int]) -> None:
    """Refuse one that does not draw the teacher's images."""
    images = drawer.draw(Random("cpu", "check"), 2, *shape)
    if not isinstance(images, Tensor) or tuple(images.shape) != (2, *shape):
        given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise EchosetError(f"{name}.draw gives {given} where {(2, *shape)} is asked for")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise EchosetError(f"{name}.draw gives values from {low:.3g} to {high:.3g}, not in [0, 1]")


def read_pictures(
    source: OwnSource, name: str, channels: int, size: Size, most: int, quiet: bool
) -> Tensor:  # (N, channels, height, width) uint8
    """The pictures of a source, at most so many where it has no end."""
    stored = getattr(source, "images", None)
    if isinstance(stored, Tensor):
        return fit_pixels(stored, channels, size)
    items = _items(source, name)
    count = len(source) if isinstance(source, Sized) else most
    with StepProgress(f"reading {name}", count, quiet) as progress:
        counted = _counted(itertools.islice(items, count), progress)
        images, _ = stack_items(counted, name, channels, size)
    return images


def _items(source: OwnSource, name: str) -> Iterator[Any]:
    """Its pictures one after another. A data set need not be iterable, nor end by itself."""
    if isinstance(source, Sized) and hasattr(source, "__getitem__"):
        dataset = cast(Any, source)
        return (dataset[number] for number in range(len(dataset)))
    if isinstance(source, Iterable):
        return iter(source)
    raise EchosetError(
        f"{name} is no source: give a name, pictures (a data set or any iterable), or an object "
        "with draw(random, count, channels, height, width)"
    )


def _counted(items: Iterator[Any], progress: StepProgress) -> Iterator[Any]:
    for number, item in enumerate(items):
        progress.update(number + 1)
        yield item
