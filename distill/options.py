"""Options of the distillation stage. No torch here: `--help` reads this file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from distill.brief import Brief
from distill.methods import LABELS, METHODS
from distill.ranges import (
    require_least,
    require_most,
    require_positive,
    require_within,
)
from synthesis_kernels.errors import EchosetError, suggest

Optimiser = Literal["muon", "sgd", "adamw"]
ExportForm = Literal["folder", "npz", "webdataset", "set"]
OutputForm = Literal["logits", "probabilities", "sigmoid"]

PLAIN = {"plain": LABELS}
"""What a study calls plain training."""


def check_loss(loss: Mapping[str, float | None], own: Collection[str] = ()) -> None:
    """Refuse names that no method has, weights that are none, and a loss of nothing. A user's `own`
    methods have names, too.
    """
    unknown = [name for name in loss if name not in METHODS and name not in own]
    if unknown:
        hint = suggest(unknown[0], METHODS)
        raise EchosetError(f"no loss '{unknown[0]}'; there are {', '.join(METHODS)}{hint}")
    for name, weight in loss.items():
        if weight is not None and not 0 <= weight < inf:
            raise EchosetError(f"the weight of loss '{name}' must be a number from 0, got {weight}")
    if not any(weight is None or weight > 0 for weight in loss.values()):
        raise EchosetError("no loss has a weight above 0")


def split_method(method: str) -> list[str]:
    """The losses that a study's method joins, as hinton+at does; plain is labels alone."""
    names = [PLAIN.get(part, part) for part in method.split("+")]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise EchosetError(
            f"no method '{unknown[0]}'; there are {', '.join((*PLAIN, *METHODS))}, and joins such "
            f"as hinton+at{suggest(unknown[0], (*PLAIN, *METHODS))}"
        )
    return names


@dataclass(frozen=True, repr=False)
class ViewOptions(Brief):
    """How an image is changed, at random, each time the student sees it."""

    rotate: float = 12.0
    """Largest rotation in degrees."""
    scale: float = 0.1
    """Largest relative change of size."""
    shift: float = 0.1
    """Largest shift, as a part of the shorter side; by whole pixels where nothing is rotated or
    scaled.
    """
    flip: bool = False
    """Mirror half of the images left to right; right for photographs, wrong for digits."""
    cutout: float = 0.0
    """Side of a square made black, as a part of the shorter side."""
    mixup: float = 0.0
    """Part of the views that blend an image with another one; the teacher answers for the blend."""
    cutmix: float = 0.0
    """Part of the views in which a rectangle of another image is pasted; the teacher answers for
    what comes out, and labels from the data are blended by area, which suits pictures of one thing
    on a plain ground badly.
    """
    erase: float = 0.0
    """Part of the views in which a rectangle is filled with noise."""
    operations: int = 0
    """RandAugment: changes of light, contrast, sharpness, depth and shear, one after another, drawn
    for each view; 0 = none.
    """
    strength: float = 0.5
    """Largest size of such a change, from 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "", 0, "operations")
        require_most(self, "", 64, "operations")
        require_within(self, "", "[0, 1]", "mixup", "cutmix", "erase", "strength")
        wholes = {"shift": "the image's side", "cutout": "the image's side", "scale": "the size"}
        for name, whole in wholes.items():
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise EchosetError(f"{name} is a part of {whole}, in [0, 1), got {value}")
        if not 0 <= self.rotate <= 180:
            raise EchosetError(f"rotate must lie in [0, 180] degrees, got {self.rotate}")


@dataclass(frozen=True, repr=False)
class StudentOptions(Brief):
    """A student's network; channels, size and classes come from the set."""

    model: str = "convnet-16"
    """Zoo name, torchvision name or import path."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the model's constructor."""
    weights: str | None = None
    """A file of weights to go on from, saved by echoset or a checkpoint; by default they are drawn
    afresh.
    """


@dataclass(frozen=True, repr=False)
class DistillOptions(Brief):
    """How a student learns from a set and its teacher."""

    loss: dict[str, float | None] = field(default_factory=lambda: {"hinton": 1.0})
    """Losses and their weights, added up; the help ends with their names. Unless labels is named,
    it comes along at the weight the others were published with: none beside hinton, .025 beside
    mse, 1 beside most. Short: --loss hinton=1 at, a loss without a number (null) at its published
    weight.
    """
    labels: Literal["teacher", "data"] = "teacher"
    """Where a loss wants labels: the teacher's own decision on each view (data-free), or the labels
    the data has.
    """
    label_temperature: float = 0.0
    """The teacher's decision as a label: 0 takes its first choice, above 0 its softmax at this
    temperature.
    """
    steps: int = 1000
    """Student updates."""
    batch: int = 128
    """Images in an update."""
    optimiser: Optimiser = "muon"
    """Muon (matrices; Adam at a tenth of the rate for the rest), SGD with Nesterov momentum .9, or
    AdamW.
    """
    learning_rate: float | None = None
    """Peak of the one-cycle schedule; by default .05 for muon, .1 for sgd, .003 for adamw."""
    weight_decay: float = 5e-4
    """Of weights of two dimensions and more."""
    warmup: float = 0.15
    """Part of the steps in which the learning rate rises; then it falls along a cosine."""
    ema: float = 0.0
    """Decay of a running average of the student's weights, which is then what is kept; 0 keeps the
    weights themselves.
    """
    temperature: float = 4.0
    """Softens both distributions in hinton's KL divergence."""
    views_per_image: int = 16
    """Views the teacher answers for, once, before the student starts (where these are fewer than
    the steps will show, and no loss but hints compares features; else at every step); 0 = a new
    view and a new answer at every step.
    """
    hints_gib: float = 4.0
    """GiB of hints that are kept with these answers at most, on the device; a run that goes on asks
    for them again. Where there would be more, the teacher is asked at every step, which is slower.
    So it is with answers of many places an image.
    """
    views: ViewOptions = ViewOptions(cutmix=0.5)
    """What the student sees of an image."""
    patience: int = 0
    """Stop after so many checks (one every 50 steps) without a rise of the agreement on held-out
    images of the set, and keep the student that agreed most; 0 = take all steps and keep the
    last.
    """
    held_out: float = 0.1
    """Part of the set kept for these checks, where there is patience."""
    teacher_layers: tuple[str, ...] = ()
    """Layers whose maps fitnet, hints, at, fsp and sp compare (sp only the last one's); by default
    the last block of each stage. rkd compares the input of the last linear layer, and uses these
    layers only in a network that has none.
    """
    student_layers: tuple[str, ...] = ()
    """The student's layers for the same losses: as many as teacher_layers where both are named,
    else paired from the last one backwards. With the loss `one`, the branches begin after the last
    but one of them.
    """
    peers: int = 2
    """Networks that learn together with the loss `dml`; the first is the student."""
    branches: int = 3
    """Branches of the student's last stage with the loss `one`; the first is the student."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        require_positive(self, "", "temperature")
        require_least(self, "", 0, "steps", "views_per_image", "patience")
        require_least(self, "", 0, "label_temperature", "weight_decay", "hints_gib")
        require_least(self, "", 2, "batch", "peers", "branches")
        require_most(self, "", 64, "peers", "branches")
        require_within(self, "", "[0, 1)", "warmup", "ema", "held_out")
        if self.learning_rate is not None:
            require_least(self, "", 0, "learning_rate")


@dataclass(frozen=True, repr=False)
class StudyOptions(Brief):
    """A grid of distillations: sets × corruptions × methods × seeds."""

    methods: tuple[str, ...] = (
        "plain",
        "hinton",
        "fitnet",
        "at",
        "fsp",
        "sp",
        "rkd",
        "bss",
        "dml",
        "one",
    )
    """Losses at their published weights: plain (labels alone), hinton (with labels from data: .1
    labels + .9 hinton, but 1 + 1 beside dml or one), the others each with labels; or several
    joined, as in hinton+at.
    """
    corruptions: tuple[str, ...] = ("none",)
    """none, noise=RATE, imbalance=GAMMA; they need a set with labels, and
    distillation.labels=data.
    """
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each has its own draw of images, its own damage, and its own student."""
    images: int = 0
    """Draw so many images, balanced by their labels, from each set for each seed; 0 = all of it."""
    attacks: int = 50
    """Test images attacked for boundary similarity and adversarial transfer; 0 = neither."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or not self.methods or not self.corruptions:
            raise EchosetError("a study needs one seed, one method and one corruption at least")
        for method in self.methods:
            split_method(method)
        require_least(self, "", 0, "images", "attacks")
