"""A transfer set as torch's loaders and people take it: what an item is, and what can be asked of
a set besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from PIL.Image import Image

    from distill.sets.transfer_set import TransferSet


class Item(NamedTuple):
    """One image of a set. A DataLoader makes a batch of the same four fields."""

    image: Tensor  # (C, H, W) float32 in [0, 1]
    label: Tensor  # (*places) the teacher's decision
    # (K, *places) float32, the teacher's answer to this image; (K, 0, 0) where the set keeps none
    logits: Tensor
    index: int  # type: ignore[assignment]  # hides the method of tuples
    """Its place in the set, by which answers to its views are found."""


class ItemSet(Dataset[Item]):
    """What a set offers besides its tensors; `TransferSet` is one."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N, *places)
    logits: Tensor  # (N, K) float16, or maps (N, K, h, w)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of a set of {len(self)}")
        place = int(index) % len(self)
        image = self.images[place].float() / 255
        (logits,) = self._whole.logits_of(slice(place, place + 1))
        return Item(image, self.labels[place], logits, place)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    @property
    def _whole(self) -> TransferSet:
        return cast("TransferSet", self)

    def calibration_loader(
        self, images: int = 256, batch: int = 32, seed: int = 0
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of images in [0, 1] and labels, balanced from the first one on: for calibrating a
        quantised network, say.
        """
        return calibration_loader(self._whole, images, batch, seed)

    def to_dataset(self, views: int = 0) -> Any:
        """As a data set of Hugging Face's `datasets`, which has to be installed: image, label,
        logits and index; with `views`, a row for each of so many views of each image. A label map
        is a picture whose values are classes.
        """
        from distill.sets.hugging_face import to_dataset

        return to_dataset(self._whole, views)

    def show(self, rows: int = 10, columns: int = 10) -> Image:
        """A sheet of some of its pictures, a row a class: save it, or let a notebook show it."""
        from distill.sets.showing import contact_sheet

        return contact_sheet(self._whole, rows, columns)

    def __repr__(self) -> str:
        from distill.sets.showing import describe

        return describe(self._whole)

    def _repr_html_(self) -> str:
        from distill.sets.showing import as_html

        return as_html(self._whole)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels alone, in an order of their own."""

    def __init__(self, data: TransferSet, order: Tensor) -> None:
        self.data = data
        self.order = order  # (n,) int64

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        if not 0 <= place < len(self):
            raise IndexError(f"image {place} of {len(self)}")
        item = self.data[int(self.order[place])]
        return item.image, item.label


def calibration_loader(
    data: TransferSet, images: int = 256, batch: int = 32, seed: int = 0
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of images, (B, C, H, W) in [0, 1], and labels. However many are used, from the first
    on, they have as many of each class as of any other, or one more, while each has images left.
    """
    if not 1 <= images <= len(data):
        raise EchosetError(
            f"images must lie in [1, {len(data)}], the images there are, got {images}"
        )
    if batch < 1:
        raise EchosetError(f"batch must be at least 1, got {batch}")
    order = balanced_order(data.groups, seed)[:images]
    return DataLoader(Pairs(data, order), batch_size=batch)


def balanced_order(
    groups: Tensor,  # (N,) the class that each image counts for
    seed: int = 0,
) -> Tensor:  # (N,) int64
    """Every class's first image, then every class's second, and so on; which one is a class's first
    is drawn.
    """
    shuffled = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[groups[shuffled].argsort(stable=True)]
    counts = groups.long().bincount()
    starts = counts.cumsum(0) - counts
    rounds = torch.arange(len(groups)) - starts[groups[by_class].long()]
    return by_class[rounds.argsort(stable=True)]
