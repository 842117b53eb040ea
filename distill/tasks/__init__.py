"""What a decision is: one file a task, and one line in `TASKS`.

A network answers with one number a class, at one place of an image or at several: logits
(B, K, *places). What follows from that alone is written for any number of places. A task says the
rest: which class an image counts for, how labels are stored, and what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeAlias

from synthesis_kernels.errors import EchosetError, suggest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from distill.models.classifier import ModelSpec
    from distill.options import ViewOptions
    from distill.tasks.words import Words

TASKS = {
    "classification": "distill.tasks.classification:Classification",
    "segmentation": "distill.tasks.segmentation:Segmentation",
}
"""Every task's name and its class, which is imported when it is asked for."""

USUAL = "classification"
"""The task where nobody names one."""

DENSE = "segmentation"
"""The task of networks that answer with maps."""


Figures: TypeAlias = "dict[str, float | list[float | None]]"
"""What a task measures, by name."""


class Task(Protocol):
    """What a network decides, and what that means for quotas, targets, labels and figures.

    Decisions and labels have the same form: (B, *places) whole numbers below the count of classes.
    """

    label_dtype: torch.dtype
    """How labels are stored in a transfer set."""
    exact: bool
    """Whether an image counts for one class alone, so that quotas can be met exactly."""
    words: Words
    """What tables, pages and cards call its decisions and labels."""

    label_maps: bool
    """Whether images have label maps, and not one label each, where they are read from files."""

    def places(self, spec: ModelSpec) -> tuple[int, ...]:
        """Where in an image there is a decision: () for one an image, (height, width) for maps."""

    def group(self, labels: Tensor, classes: int) -> Tensor:  # (B, *places) -> (B,) int64
        """The class whose quota an image counts towards."""

    def targets(self, wanted: Tensor, spec: ModelSpec, random: torch.Generator) -> Tensor:
        """Decisions to ask of the teacher where images of the classes `wanted`, (B,), are made."""

    def mixed_rows(
        self,
        rows: Tensor,  # (N, K, *places) of the pool; of label maps bytes, 255 for 1
        index: Tensor,  # (B,)
        view: Tensor,  # (B,)
        pool: Tensor,  # (N, C, H, W)
        options: ViewOptions,
        seed: int,
    ) -> Tensor:  # (B, K, *places)
        """The rows of labels changed as the views of their images are."""

    def shortfall(
        self, counts: Sequence[int], quotas: Sequence[int], images: int
    ) -> dict[int, int]:
        """What each class lacks of its quota, in images, where it lacks anything; `counts` are the
        decisions in so many `images`.
        """

    def is_balanced(self, counts: Sequence[int]) -> bool:
        """Whether these counts of decisions are as even as the task can have them."""

    def summary(self, logits: Tensor) -> Tensor:  # (B, K, *places) -> (B, K)
        """An answer as one of the whole image, for what compares images."""

    def count(
        self,
        decisions: Tensor,  # (B, *places)
        labels: Tensor,  # (B, *places)
        classes: int,
    ) -> Tensor:
        """Whole numbers that add up over parts of the data, for `measure`. Places without a label
        count nowhere.
        """

    def measure(self, counts: Tensor) -> Figures:
        """Figures of the task's own, of the sum of its counts, the one to judge by first; a list
        has one a class, None where the labels have none of it.
        """

    def check_folders(self, counts: Sequence[int]) -> None:
        """Refuse to export what folders of pictures can't say; `counts` are decisions."""

    def picture_folder(self, label: Tensor, classes: int) -> str:  # (*places)
        """The folder of an image with this label, in an export of pictures."""

    def folder_files(self, label: Tensor, name: str) -> dict[str, bytes]:  # (*places)
        """Files beside the picture called `name` in an export of pictures: paths below its root,
        and what they hold.
        """

    def label_files(self, label: Tensor) -> dict[str, bytes]:  # (*places)
        """An image's label in an archive: suffixes, and what the files hold."""

    def paint(self, labels: Tensor) -> Tensor | None:  # (B, *places) -> (B, 3, H, W) uint8
        """Labels as pictures of the images' size, in the colours of `distill.data.palette`;
        None where they are none.
        """


def say_figure(name: str) -> str:
    """A figure's name in words, such as mean IoU."""
    return name.replace("_", " ").replace("iou", "IoU")


@cache
def find_task(name: str) -> Task:
    """The task of this name."""
    if name not in TASKS:
        raise EchosetError(f"no task '{name}'; there are {', '.join(TASKS)}{suggest(name, TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    return getattr(import_module(module), attribute)()
