"""Semantic segmentation: one decision a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.data.augment import view_maps
from distill.data.palette import VOID_VALUE, paint, to_indexed_png
from distill.tasks.layouts import draw_layouts
from distill.tasks.places import count_decisions
from distill.tasks.words import Words
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from distill.models.classifier import ModelSpec
    from distill.options import ViewOptions
    from distill.tasks import Figures

FAINT = 0.25
"""Of an equal share of the pixels: a class with less than that is not what an image is kept for."""


class Segmentation:
    """A label map an image (see `distill.tasks.Task`).

    An image counts for the class that it has most of, compared with what the images beside it have.
    """

    exact = False
    label_dtype = torch.uint8
    label_maps = True
    words = Words(
        unit="pixels",
        shares=True,
        balance="every class has half to twice an equal share",
        label="A label map has that network's decision at each pixel: the value of a pixel is its "
        "class, and the palette is for looking at it.",
        category="image-segmentation",
        folder={
            "images/*.png": "pictures",
            "labels/*.png": "label maps of the same names: indexed PNGs, whose values are classes",
            "metadata.jsonl": "which label map belongs to which picture, for Hugging Face",
            "classes.txt": "the classes' names, one a line, where they have names",
        },
        loaded=("metadata.jsonl", "images/*.png", "labels/*.png"),
        archive=".seg.png (the label map, an indexed PNG whose values are classes)",
    )

    def places(self, spec: ModelSpec) -> tuple[int, ...]:
        """Every pixel."""
        if spec.classes > VOID_VALUE:
            raise EchosetError(
                f"label maps are kept in bytes, with {VOID_VALUE} classes at most; {spec.model} "
                f"has {spec.classes:,}"
            )
        return (spec.height, spec.width)

    def group(self, labels: Tensor, classes: int) -> Tensor:  # (B, H, W) -> (B,)
        """The class whose share of an image is the largest in comparison with its mean share. For
        one image alone that is the class that covers most of it.
        """
        flat = labels.flatten(1).long()
        own = torch.arange(len(flat), device=flat.device)[:, None] * classes
        # Each image's counts in a row of its own; what is void counts nowhere.
        numbers = torch.where(flat >= 0, own + flat, -1)
        shares = count_decisions(numbers, len(flat) * classes).view(-1, classes).float()
        shares = shares / shares.sum(1, keepdim=True).clamp_min(1)
        return (shares / (shares.mean(0) + FAINT / classes)).argmax(1)

    def targets(self, wanted: Tensor, spec: ModelSpec, random: torch.Generator) -> Tensor:
        """Maps of flat segments, most of them of the class that is wanted."""
        return draw_layouts(wanted, spec.classes, (spec.height, spec.width), random)

    def mixed_rows(
        self,
        rows: Tensor,  # (N, K, H, W) floats, or bytes of 0 and 255
        index: Tensor,  # (B,)
        view: Tensor,  # (B,)
        pool: Tensor,  # (N, C, H, W)
        options: ViewOptions,
        seed: int,
    ) -> Tensor:  # (B, K, H, W)
        """The maps moved as their images are. What comes in from outside, or is cut out, has no
        label, that is, a row of zeros; between two classes a row is partly one, partly the other.
        """
        return view_maps(rows, index, view, options, seed)

    def shortfall(
        self, counts: Sequence[int], quotas: Sequence[int], images: int
    ) -> dict[int, int]:
        """Images' worth of pixels that a class lacks of half its quota."""
        pixels = max(sum(counts) / max(images, 1), 1)
        short = {}
        for label, (count, quota) in enumerate(zip(counts, quotas, strict=True)):
            lacking = quota / 2 - count / pixels
            if lacking > 0:
                short[label] = max(1, round(lacking))
        return short

    def is_balanced(self, counts: Sequence[int]) -> bool:
        """Whether each class has half of an equal share at least, and twice that at most."""
        even = sum(counts) / len(counts)
        return all(even / 2 <= count <= 2 * even for count in counts)

    def summary(self, logits: Tensor) -> Tensor:  # (B, K, H, W) -> (B, K)
        """The logarithm of the mean probabilities."""
        return logits.softmax(1).mean((2, 3)).clamp_min(1e-12).log()

    def count(
        self,
        decisions: Tensor,  # (B, H, W)
        labels: Tensor,  # (B, H, W)
        classes: int,
    ) -> Tensor:  # (K, K)
        """The confusion matrix: truth, decision."""
        known = labels >= 0
        pairs = labels[known].long() * classes + decisions[known]
        return pairs.bincount(minlength=classes**2).view(classes, classes)

    def measure(self, counts: Tensor) -> Figures:  # (K, K)
        """Intersection over union: its mean over the classes that the labels have, and of each."""
        both = counts.diagonal()
        truth = counts.sum(1)
        either = truth + counts.sum(0) - both
        shares = (both.double() / either).tolist()
        totals = truth.tolist()
        iou = [share if total else None for share, total in zip(shares, totals, strict=True)]
        some = [share for share in iou if share is not None]
        return {"mean_iou": sum(some) / len(some), "iou": iou}

    def check_folders(self, counts: Sequence[int]) -> None:
        """Nothing: classes are values in label maps, whatever folders there are."""

    def picture_folder(self, label: Tensor, classes: int) -> str:  # (H, W)
        """One for all."""
        return "images"

    def folder_files(self, label: Tensor, name: str) -> dict[str, bytes]:  # (H, W)
        """The label map as an indexed PNG."""
        return {f"labels/{name}.png": to_indexed_png(label)}

    def label_files(self, label: Tensor) -> dict[str, bytes]:  # (H, W)
        """The label map as an indexed PNG."""
        return {"seg.png": to_indexed_png(label)}

    def paint(self, labels: Tensor) -> Tensor:  # (B, H, W) -> (B, 3, H, W) uint8
        """A colour a class."""
        return paint(labels)
