"""What an export holds: a set's images, or views of them, each with its label and answer."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.data.augment import make_views
from distill.sets.answers import ViewAnswers
from distill.sets.transfer_set import TransferSet
from distill.tasks.places import decide, enlarge, in_parts
from synthesis_kernels.errors import EchosetError

CHUNK = 64
"""Images whose views are made at once."""

Progress = Callable[[int], None]
"""Told how many images are written."""


class Picture(NamedTuple):
    """One picture, and what the teacher says of it."""

    name: str
    png: bytes
    label: Tensor  # (*places)
    logits: Tensor  # (K) float16, or maps (K, h, w), at the network's own size or 0 × 0: not kept


@dataclass(frozen=True)
class Content:
    """A set, and how many views of each image are written as pictures; with 0 the images are."""

    data: TransferSet
    views: int = 0

    def __post_init__(self) -> None:
        if self.views < 0:
            raise EchosetError(f"views must be at least 0, got {self.views}")
        if self.views and self.views > self.answers.per_image:
            raise EchosetError(
                f"the set has answers to {self.answers.per_image} views of each image, not to "
                f"{self.views}; ask for fewer views"
            )

    @property
    def answers(self) -> ViewAnswers:
        """The answers to views, where pictures of views are wanted."""
        if self.data.answers is None:
            raise EchosetError(
                "there are no answers to views to write: a set drawn or merged from others has "
                "none, and another gets them with --answers, by the command that made it"
            )
        return self.data.answers

    def __len__(self) -> int:
        return len(self.data) * max(self.views, 1)

    @property
    def labels(self) -> Tensor:  # (n, *places)
        """Of each picture, in their order."""
        if not self.views:
            return self.data.labels
        told = self.answers.tensor[:, : self.views].flatten(0, 1)
        places = self.data.labels.shape[1:]
        parts = in_parts(len(told), (self.data.classes, *places))
        decided = [decide(enlarge(told[part].float(), places)) for part in parts]
        return torch.cat(decided).to(self.data.labels.dtype)

    def pictures(self) -> Iterator[Picture]:
        """Every picture; of one image, view after view."""
        if not self.views:
            yield from self._images()
            return
        labels = self.labels.unflatten(0, (-1, self.views))  # (N, V, *places)
        for first in range(0, len(self.data), CHUNK):
            images = self.view_images(first, first + CHUNK)
            answers = self.answers.tensor[first : first + CHUNK, : self.views]
            for number, (shown, told) in enumerate(zip(images, answers, strict=True), first):
                for view, (image, logits) in enumerate(zip(shown, told, strict=True)):
                    name = f"{number:06d}-{view:02d}"
                    yield Picture(name, to_png(image), labels[number, view], logits)

    def _images(self) -> Iterator[Picture]:
        data = self.data
        for number, image in enumerate(data.images):
            yield Picture(f"{number:06d}", to_png(image), data.labels[number], data.logits[number])

    def view_images(self, first: int, last: int) -> Tensor:  # (n, V, C, H, W) uint8
        """The views of a range of images, rounded to bytes."""
        answers = self.answers
        index = torch.arange(len(self.data))[first:last]
        views = []
        for view in range(self.views):
            seen = make_views(
                self.data.images, index, torch.full_like(index, view), answers.views, answers.seed
            )
            views.append(seen.mul(255).round().clamp(0, 255).byte())
        return torch.stack(views, 1)


def to_png(image: Tensor) -> bytes:  # (C, H, W) uint8
    """The image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(channels_last(image)).save(buffer, "PNG")
    return buffer.getvalue()


def channels_last(images: Tensor) -> np.ndarray:  # (…, C, H, W) -> (…, H, W[, C])
    """As NumPy and Pillow have pictures."""
    pixels = images.movedim(-3, -1).contiguous().numpy()
    if pixels.shape[-1] == 1:
        return pixels[..., 0]
    return pixels
