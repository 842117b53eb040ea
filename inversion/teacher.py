"""Any classifier made inspectable: load it, find its BatchNorm layers, check it before any work."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.models import (
    Classifier,
    ModelSpec,
    build_classifier,
    load_classifier,
    read_spec,
)
from distill.models.classifier import CONTRACT
from distill.models.frozen import Frozen, find_batch_norms
from distill.models.kinds import Kind, kind_of
from distill.models.weights import load_weights, read_weights
from inversion.options import TeacherOptions, TeacherViewOptions
from inversion.teacher_file import as_named, spell_out
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.errors import EchosetError

ASSETS = Path(__file__).parent / "assets"
MNIST_SLICE = (
    ASSETS / "mnist_test_slice.npz"
)  # every fifth image of the MNIST test set, to judge the bundled teacher's students
BUNDLED = {
    "mnist": ASSETS / "mnist_convnet32.safetensors",
    "cifar10": ASSETS / "cifar10_wrn40x2.safetensors",
    "cifar10-small": ASSETS / "cifar10_convnet32.safetensors",
}
DEAD_VARIANCE = 1e-8


def load_teacher(
    options: TeacherOptions = TeacherOptions(), untrained: bool = False, trust: bool = False
) -> Classifier:
    """Build the teacher that `options` describe, frozen and in evaluation mode; one that has
    learnt, unless `untrained`.

    Some kinds of network come with their weights, or know where theirs are published; others need a
    file of them. With `trust` the code is run that a file names, or a set.
    """
    named = spell_out(options, BUNDLED, trust)
    teacher = _load(named.options, untrained, trust)
    named.check(teacher)
    teacher.named = as_named(named.options)
    return teacher.eval().requires_grad_(False)


def _load(options: TeacherOptions, untrained: bool, trust: bool) -> Classifier:
    """The network that the options name, with its weights."""
    path = BUNDLED.get(options.model, Path(options.model))
    told = _description(options.weights)
    if path.suffix == ".safetensors" and read_spec_if_file(path):
        teacher = load_classifier(path, trust)
        _check_known(options, teacher.spec, path, ("arguments", *CONTRACT))
    else:
        kind = kind_of(options.model)
        if told:
            _check_known(options, told, str(options.weights), CONTRACT)
            contract = {key: getattr(told, key) for key in CONTRACT}
            notes = told.notes
        else:
            contract = _complete_contract(options, kind)
            notes = {}
        teacher = build_classifier(
            ModelSpec(options.model, options.arguments, **contract, notes=notes)
        )
        if options.weights is None and not untrained:
            _load_published(teacher, kind)
    if options.weights is not None:
        load_weights(teacher.network, read_weights(options.weights), options.weights)
        if told and (told.mean, told.std) != (teacher.spec.mean, teacher.spec.std):
            raise EchosetError(
                f"{options.weights} was trained with mean {told.mean} and std {told.std}, {path} "
                f"with {teacher.spec.mean} and {teacher.spec.std}; give the weights' own network "
                "as the model"
            )
    return teacher


def _description(weights: str | None) -> ModelSpec | None:
    """What a file of weights says of its network, if it says anything."""
    path = Path(weights or "")
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    return read_spec(path)


def _complete_contract(options: TeacherOptions, kind: Kind) -> dict[str, Any]:
    """The options' contract; where one was left at its default, what the kind knows of the name."""
    usual = TeacherOptions()
    known = kind.contract(options.model, options.arguments)
    contract = {}
    for key in CONTRACT:
        value = getattr(options, key)
        untouched = value == getattr(usual, key)
        contract[key] = known.get(key, value) if untouched else value
    return contract


def _load_published(teacher: Classifier, kind: Kind) -> None:
    """Give a teacher without a file of weights those that its kind has for it; refuse one that has
    none.
    """
    spec = teacher.spec
    if kind.comes_trained:
        return
    if kind.weights is None:
        raise EchosetError(
            f"'{spec.model}' names a network that was never trained: give the file of its "
            "weights, too (for a teacher --teacher.weights FILE)"
        )
    load_weights(
        teacher.network,
        kind.weights(spec.model, spec.arguments),
        f"the published weights of {spec.model}",
    )


def _check_known(
    options: TeacherOptions, spec: ModelSpec, file: str | Path, names: tuple[str, ...]
) -> None:
    """Refuse to be told otherwise what a file says of itself; an option at its default tells
    nothing.
    """
    usual = TeacherOptions()
    for name in names:
        given = getattr(options, name)
        own = getattr(spec, name)
        if given not in (own, getattr(usual, name)):
            raise EchosetError(
                f"{file} says of itself that its {name} is {own}, not {given}; leave {name} away"
            )


def read_spec_if_file(path: Path) -> ModelSpec | None:
    """The spec in a safetensors file; a name that ends so but leads nowhere is an error of its
    own.
    """
    if not path.is_file():
        raise EchosetError(f"no model file at {path}")
    spec = read_spec(path)
    if spec is None:
        raise EchosetError(
            f"{path} holds weights alone: give the network's name as the model and this file as "
            "its weights"
        )
    return spec


def trained_views(spec: ModelSpec) -> TeacherViewOptions:
    """How the teacher's training images were shifted, mirrored and cut out, by the notes in its
    file; a small shift without any.
    """
    told = spec.notes.get("views")
    if not isinstance(told, dict):
        return TeacherViewOptions()
    views = TeacherViewOptions(
        told.get("shift", 0.0), told.get("flip", False), told.get("cutout", 0.0)
    )
    check_teacher_views(views, "the teacher file's notes on its views")
    return views


def check_teacher_views(views: TeacherViewOptions, source: str) -> None:
    """Refuse what no image could be changed by."""
    remedy = "set --synthesis.objective.views, or save the teacher with notes that are right"
    for name in ("shift", "cutout"):
        value = getattr(views, name)
        if not isinstance(value, int | float) or not 0 <= value <= 0.5:
            raise EchosetError(f"{source}: {name} must lie in [0, 0.5], got {value!r}; {remedy}")
    if not isinstance(views.flip, bool):
        raise EchosetError(f"{source}: flip must be true or false, got {views.flip!r}; {remedy}")


@dataclass(frozen=True)
class Inspection:
    """What was found in a teacher."""

    spec: ModelSpec
    parameters: int
    weight_hash: str
    layers: dict[str, int]
    """BatchNorm layers tapped and their channels."""
    kinds: dict[str, int]
    """How many layers of which class."""
    dead_channels: int
    """Channels whose running variance is zero: nothing in the training data ever moved them."""
    warnings: list[str]


def inspect_teacher(teacher: Classifier, needs_batch_norm: bool = True) -> Inspection:
    """Look a teacher over, and refuse one that can't be inverted; the message names the layer and
    what to do.
    """
    layers = find_batch_norms(teacher.network)
    if not layers and needs_batch_norm:
        raise EchosetError(
            f"teacher '{teacher.spec.model}' has no BatchNorm layer with running statistics, and "
            "SSD-KD matches those. Use a teacher with BatchNorm (for example convnet-32, "
            "wrn-40-2, torchvision's vgg11_bn), a recipe that needs none (--synthesis.recipe "
            "adversarial), or no generator: echoset collect shaders"
        )
    statistics = {name: (layer.running_mean, layer.running_var) for name, layer in layers.items()}
    untrained = _check_statistics(statistics)
    _check_parameters(teacher)
    check_shape(teacher)
    if layers:
        _check_moments(teacher)
    kinds = Counter(type(layer).__name__ for layer in layers.values())
    dead = [int((variance < DEAD_VARIANCE).sum()) for _, variance in statistics.values()]
    return Inspection(
        spec=teacher.spec,
        parameters=teacher.parameters_count,
        weight_hash=teacher.weight_hash(),
        layers={name: mean.numel() for name, (mean, _) in statistics.items()},
        kinds=dict(kinds),
        dead_channels=sum(dead),
        warnings=[f"layer {name} was never trained" for name in untrained] + _doubts(teacher),
    )


def _check_statistics(statistics: dict[str, tuple[Tensor, Tensor]]) -> list[str]:
    """Refuse running statistics that can't be right; gives the layers that were never trained."""
    untrained = []
    for name, (mean, variance) in statistics.items():
        if not (torch.isfinite(mean).all() and torch.isfinite(variance).all()):
            raise EchosetError(
                f"BatchNorm layer {name} has running statistics that are not finite; the "
                "checkpoint is damaged"
            )
        if (variance < 0).any():
            raise EchosetError(
                f"BatchNorm layer {name} has a negative running variance; the checkpoint is damaged"
            )
        if not mean.any() and (variance == 1).all():
            untrained.append(name)
    if statistics and len(untrained) == len(statistics):
        raise EchosetError(
            "the teacher's running statistics were never trained (every mean is 0, every variance "
            "1); give its trained weights with --teacher.weights"
        )
    return untrained


def _check_parameters(teacher: Classifier) -> None:
    for name, parameter in teacher.network.named_parameters():
        if not torch.isfinite(parameter).all():
            raise EchosetError(
                f"the teacher's parameter {name} is not finite; the checkpoint is damaged"
            )


def _doubts(teacher: Classifier) -> list[str]:
    """What its user may have forgotten to say of it."""
    doubts = []
    if set(teacher.spec.mean) == {0.0} and set(teacher.spec.std) == {1.0}:
        doubts.append(
            "no mean and std given: assuming the network takes images in [0, 1] as they are"
        )
    if "views" not in teacher.spec.notes:
        doubts.append(
            "its file doesn't say how its training images were shifted and mirrored: see "
            "synthesis.objective.views"
        )
    return doubts


def check_shape(teacher: Classifier, option: str = "--teacher") -> None:
    """Refuse a network, given by `option`, that doesn't take the images, or tell the classes, that
    it is said to.
    """
    try:
        teacher.check_forward()
    except EchosetError as error:
        raise EchosetError(
            f"{error}. Set {option}.channels, {option}.size and {option}.classes to what it was "
            "trained on"
        ) from error


def _check_moments(teacher: Classifier) -> None:
    """Name a BatchNorm layer that runs twice, or never."""
    spec = teacher.spec
    grey = torch.full((2, spec.channels, spec.size, spec.size), 0.5, device=teacher.mean.device)
    # Wherever it will run, it is looked at on the CPU.
    with torch.no_grad(), kernel_form("reference"):
        Frozen(teacher).with_moments(grey)
