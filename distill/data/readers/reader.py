"""What a reader is: it recognises one layout of files, and reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from distill.data.maps import Maps
from distill.loop import StepProgress
from distill.sizes import Size

Item = TypeVar("Item", covariant=True)


class Content(NamedTuple):
    """What a layout holds."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor | None  # (N,) int64, or (N, H, W) of label maps
    folders: tuple[str, ...] | None = None
    """Names of the folders that the labels number, where pictures lie in folders of classes."""


@dataclass(frozen=True)
class Request:
    """What is wanted of the data."""

    split: str
    """train, test, or another name that a layout has."""
    shape: tuple[int, Size] | None
    """Channels and size that a network takes; None for those of the data."""
    quiet: bool
    """Show no progress."""
    labelled: bool
    """Whether labels are wanted."""
    maps: Maps | None = None
    """How label maps are read, where the labels that are wanted are such."""


class Reader(Protocol):
    """One layout of files. A module with these functions is one."""

    def describe(self, split: str) -> str:
        """What the layout is called where nothing is understood."""

    def is_at(self, path: Path, split: str) -> bool:
        """Whether the path itself is such data."""

    def find_below(self, root: Path, split: str) -> list[Path]:
        """Every place below a root folder that holds such data."""

    def read(self, path: Path, request: Request) -> Content:
        """Images and labels of what lies at the path."""


class Indexed(Protocol[Item]):
    """A data set whose items have numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


def watch(items: Indexed[Item], quiet: bool) -> Iterator[Item]:
    """Items by index, with progress: iterating need not end where `len` says."""
    with StepProgress("reading", len(items), quiet) as progress:
        for index in range(len(items)):
            yield items[index]
            progress.update(index + 1)
