"""Classification: one decision an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.data.augment import view_labels
from distill.tasks.words import Words
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from distill.models.classifier import ModelSpec
    from distill.options import ViewOptions
    from distill.tasks import Figures


class Classification:
    """One label an image (see `distill.tasks.Task`)."""

    exact = True
    label_dtype = torch.int64
    label_maps = False
    words = Words()

    def places(self, spec: ModelSpec) -> tuple[int, ...]:
        """One decision for the whole image."""
        return ()

    def group(self, labels: Tensor, classes: int) -> Tensor:  # (B,) -> (B,)
        """The label itself."""
        return labels

    def targets(self, wanted: Tensor, spec: ModelSpec, random: torch.Generator) -> Tensor:
        """The class that is wanted."""
        return wanted

    def mixed_rows(
        self,
        rows: Tensor,  # (N, K)
        index: Tensor,  # (B,)
        view: Tensor,  # (B,)
        pool: Tensor,  # (N, C, H, W)
        options: ViewOptions,
        seed: int,
    ) -> Tensor:  # (B, K)
        """Blended by how much of either image is seen."""
        return view_labels(rows, index, view, pool, options, seed)

    def shortfall(
        self, counts: Sequence[int], quotas: Sequence[int], images: int
    ) -> dict[int, int]:
        """Images that are missing."""
        lacking = enumerate(quota - count for quota, count in zip(quotas, counts, strict=True))
        return {label: count for label, count in lacking if count > 0}

    def is_balanced(self, counts: Sequence[int]) -> bool:
        """As many images of one class as of any other, or one more."""
        return max(counts) - min(counts) <= 1

    def summary(self, logits: Tensor) -> Tensor:  # (B, K) -> (B, K)
        """The answer itself."""
        return logits

    def count(self, decisions: Tensor, labels: Tensor, classes: int) -> Tensor:  # -> (0,)
        """Nothing beside what every task has."""
        return labels.new_zeros(0)

    def measure(self, counts: Tensor) -> Figures:
        """Nothing beside accuracy and calibration, which every task has."""
        return {}

    def check_folders(self, counts: Sequence[int]) -> None:
        """Refuse a class without images."""
        if 0 in counts:
            raise EchosetError(
                f"class {counts.index(0)} has no images, and who reads folders would give its "
                "number to the next; choose --form npz, webdataset or set"
            )

    def picture_folder(self, label: Tensor, classes: int) -> str:  # ()
        """The class's own, padded with zeros, so that names and classes sort alike."""
        digits = len(str(classes - 1))
        return f"{int(label):0{digits}d}"

    def folder_files(self, label: Tensor, name: str) -> dict[str, bytes]:  # ()
        """None: the folder is the label."""
        return {}

    def label_files(self, label: Tensor) -> dict[str, bytes]:  # ()
        """The class as a number in text."""
        return {"cls": str(int(label)).encode()}

    def paint(self, labels: Tensor) -> None:
        """A class is no picture."""
