"""Options of the distillation stage. No torch here: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
Form = Literal["auto", "reference", "native", "triton"]
Step = Literal["auto", "eager", "compiled", "graph"]


@dataclass(frozen=True)
class ViewOptions:
    """How an image is changed, at random, each time the student sees it."""

    rotate: float = 12.0
    """Largest rotation in degrees."""
    scale: float = 0.1
    """Largest relative change of size."""
    shift: float = 0.1
    """Largest shift, as a part of the image's side; by whole pixels where nothing is rotated or scaled."""
    flip: bool = False
    """Mirror half of the images left to right; right for photographs, wrong for digits."""
    cutout: float = 0.0
    """Side of a square made black, as a part of the image's side."""
    mixup: float = 0.0
    """Part of the views that blend an image with another one; the teacher answers for the blend."""


@dataclass(frozen=True)
class StudentOptions:
    """A student's network; channels, size and classes come from the set."""

    model: str = "convnet-16"
    """Zoo name, torchvision name or import path."""
    arguments: dict = field(default_factory=dict)
    """Further arguments of the model's constructor."""


@dataclass(frozen=True)
class DistillOptions:
    """How a fresh student learns from a set and its teacher."""

    steps: int = 1000
    """Student updates."""
    batch: int = 128
    """Images in an update."""
    learning_rate: float = 0.05
    """Peak of Muon's one-cycle schedule."""
    warmup: float = 0.15
    """Part of the steps in which the learning rate rises."""
    temperature: float = 4.0
    """Softens both distributions in the KL divergence."""
    views_per_image: int = 16
    """Views the teacher answers for, once, before the student starts; 0 = a new view and a new answer at every step."""
    views: ViewOptions = ViewOptions()
    """What the student sees of an image."""
