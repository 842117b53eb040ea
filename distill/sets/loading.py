"""A transfer set as torch's loaders take it: what an item is, and a loader to calibrate with."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from distill.sets.transfer_set import TransferSet


class Item(NamedTuple):
    """One image of a set. A DataLoader makes a batch of the same four fields."""

    image: Tensor  # (C, H, W) float32 in [0, 1]
    label: Tensor  # (*places) the teacher's decision
    logits: Tensor  # (K, *places) float32, the teacher's answer to this image
    index: int  # type: ignore[assignment]  # hides the method of tuples
    """Its place in the set, by which answers to its views are found."""


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
