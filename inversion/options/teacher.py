"""Options of the teacher. No torch here: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from distill.brief import Brief
from distill.options import OutputForm
from distill.ranges import require_least, require_most
from distill.sizes import read_size
from distill.tasks import TASKS, USUAL
from synthesis_kernels.errors import EchosetError

SMALLEST = 8
"""Least height and width that a generator makes."""


@dataclass(frozen=True, repr=False)
class TeacherOptions(Brief):
    """The trained network to start from."""

    model: str = "mnist"
    """'mnist', 'cifar10', 'cifar10-small', 'cifar10-gn', 'cifar10-vit' or 'camvid' (bundled), a
    file saved by echoset, a zoo or torchvision name, timm:NAME, hf:NAME or hf:FOLDER, a file of
    torch.export.save or of torch.jit.save, an import path such as pkg.module.Net (which runs that
    module's code), a .yaml file with options such as these, or a set's folder, for the teacher that
    made it.
    """
    weights: str | None = None
    """A .safetensors file, a checkpoint that torch.load reads with weights_only=True, or the name
    of weights that torchvision publishes, such as DEFAULT.
    """
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the model's constructor, checked against its annotations."""
    channels: int = 3
    """Image channels, 1 to 4: 1 is grey, 3 colour. A file saved by echoset knows its own, and what
    is below.
    """
    size: int | tuple[int, int] | str = 32
    """Side of the square input in pixels, 8 or more; HEIGHTxWIDTH for others, such as 96x128 (96
    high, 128 wide).
    """
    classes: int = 10
    """Number of classes."""
    names: str | tuple[str, ...] | None = None
    """The classes' names, in their order: with commas between, or a file of them, a name a line or
    JSON, or a folder with one folder per class, as the network was trained on.
    """
    task: str = USUAL
    """What a decision is; classification: one label an image; segmentation: one a pixel."""
    mean: tuple[float, ...] = (0.0,)
    """Mean the teacher's normaliser subtracts from images in [0, 1], one value or one a channel."""
    std: tuple[float, ...] = (1.0,)
    """Standard deviation it divides by."""
    output: str | None = None
    """Where the logits are, if the network answers with several tensors: a key, an attribute or a
    place, such as logits or 0. Where one is obvious, it is found.
    """
    output_form: OutputForm | None = None
    """What the network answers with: logits, probabilities (a softmax's), or a sigmoid's numbers.
    It is recognised; say it where that fails.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", read_size(self.size, SMALLEST))
        super().__post_init__()
        require_least(self, "", 2, "classes")
        require_most(self, "", 1_000_000, "classes")
        if self.channels not in (1, 2, 3, 4):
            raise EchosetError(f"channels must be 1 to 4, got {self.channels}")
        if self.task not in TASKS:
            raise EchosetError(f"task must be one of {', '.join(TASKS)}, got '{self.task}'")


@dataclass(frozen=True, repr=False)
class TeacherViewOptions(Brief):
    """How an image is changed, at random, before the teacher sees it."""

    shift: float = 0.0625
    """Largest shift by whole pixels, as a part of the shorter side; black comes in from outside."""
    flip: bool = False
    """Mirror half of the images left to right."""
    cutout: float = 0.0
    """Side of a square made black, as a part of the shorter side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("shift", "cutout"):
            value = getattr(self, name)
            if not 0 <= value <= 0.5:
                raise EchosetError(f"{name} must lie in [0, 0.5], got {value}")
