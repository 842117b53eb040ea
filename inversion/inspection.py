"""A teacher looked over before any work: its BatchNorm layers, its weights, its shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from distill.models import Classifier, ModelSpec, as_classifier
from distill.models.frozen import Frozen, NormLayer, find_batch_norms
from distill.models.modes import evaluating
from distill.models.settling import BOUND
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.errors import EchosetError

DEAD_VARIANCE = 1e-8
UNITS = 1.5
"""A mean or deviation above this is not one of images in [0, 1]."""

TeacherNeed = Literal["BatchNorm", "attention", "answers alone"]
"""What a recipe needs of a teacher."""


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
    output: str
    """What of the network's answers is taken, and how."""
    warnings: list[str]


def inspect_teacher(
    teacher: Classifier | nn.Module,
    needs_batch_norm: bool = True,
    *,
    untrained: list[str] | None = None,
) -> Inspection:
    """Look a teacher over, and refuse one that can't be inverted; the message names the layer and
    what to do. `untrained` is what `check_network` gave, where it was called before.
    """
    teacher = as_classifier(teacher)
    layers = find_batch_norms(teacher.network)
    if not layers and needs_batch_norm:
        raise EchosetError(
            f"teacher '{teacher.spec.model}' has no BatchNorm layer with running statistics, and "
            "SSD-KD matches those. Use a teacher with BatchNorm (for example convnet-32, "
            "wrn-40-2, torchvision's vgg11_bn), a recipe that needs none (--synthesis.recipe "
            "adversarial), or no generator: echoset collect shaders"
        )
    if untrained is None:
        untrained = check_network(teacher)
    # Wherever it will run, it is looked at on the CPU.
    with kernel_form("reference"):
        frozen = Frozen(teacher)
    if layers:
        _check_moments(teacher, frozen, layers, needs_batch_norm)
    check_gradient(teacher, frozen)
    for name in (*teacher.unused, *teacher.pooled):
        del layers[name]
    untrained = [name for name in untrained if name in layers]
    if layers and len(untrained) == len(layers):
        raise EchosetError(
            "the teacher's running statistics were never trained (every mean is 0, every variance "
            "1); give its trained weights with --teacher.weights"
        )
    kinds = Counter(type(layer).__name__ for layer in layers.values())
    dead = [int((layer.running_var < DEAD_VARIANCE).sum()) for layer in layers.values()]
    return Inspection(
        spec=teacher.spec,
        parameters=teacher.parameters_count,
        weight_hash=teacher.weight_hash(),
        layers={name: layer.running_mean.numel() for name, layer in layers.items()},
        kinds=dict(kinds),
        dead_channels=sum(dead),
        output=teacher.found.describe() if teacher.found else "logits",
        warnings=_warnings(teacher, untrained),
    )


def check_network(teacher: Classifier) -> list[str]:
    """Refuse statistics, weights and shapes that can't be right; gives the BatchNorm layers that
    were never trained.
    """
    untrained = check_numbers(teacher)
    check_shape(teacher)
    return untrained


def check_numbers(teacher: Classifier) -> list[str]:
    """Refuse statistics and weights that can't be right, by the name of their layer, before any
    image is looked at; gives the BatchNorm layers that were never trained.
    """
    untrained = _check_statistics(find_batch_norms(teacher.network))
    _check_parameters(teacher)
    return untrained


def _check_statistics(layers: Mapping[str, NormLayer]) -> list[str]:
    """Refuse running statistics that can't be right; gives the layers that were never trained."""
    untrained = []
    for name, layer in layers.items():
        mean = layer.running_mean
        variance = layer.running_var
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
    return untrained


def _check_parameters(teacher: Classifier) -> None:
    """Refuse weights that are not finite, and buffers that are no numbers, by name."""
    for name, parameter in teacher.network.named_parameters():
        if not torch.isfinite(parameter).all():
            raise EchosetError(
                f"the teacher's parameter {name} is not finite; the checkpoint is damaged"
            )
    for name, buffer in teacher.network.named_buffers():
        # A mask of attention may hold -inf.
        if torch.isnan(buffer).any():
            raise EchosetError(
                f"the teacher's buffer {name} has values that are no numbers; the checkpoint is "
                "damaged"
            )


def _warnings(teacher: Classifier, untrained: list[str]) -> list[str]:
    """All that its user should know."""
    lines = [f"layer {name} was never trained" for name in untrained]
    if teacher.unused:
        names = ", ".join(teacher.unused)
        lines.append(f"these BatchNorm layers never run in evaluation and are left out: {names}")
    if teacher.pooled:
        names = ", ".join(teacher.pooled)
        lines.append(f"these BatchNorm layers see one place an image and are left out: {names}")
    return lines + teacher.remarks + _doubts(teacher)


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
    it is said to, and a normaliser that is none of images in [0, 1].
    """
    _check_units(teacher, option)
    try:
        teacher.check_forward()
    except EchosetError as error:
        if BOUND in str(error):
            raise
        raise EchosetError(
            f"{error}. Set {option}.channels, {option}.size and {option}.classes to what it was "
            "trained on"
        ) from error


def _check_units(teacher: Classifier, option: str) -> None:
    """Refuse a normaliser for pixels from 0 to 255; its values for images in [0, 1] are told."""
    spec = teacher.spec
    if max(map(abs, spec.mean)) <= UNITS and max(spec.std) <= UNITS:
        return
    mean = _in_unit(spec.mean)
    std = _in_unit(spec.std)
    raise EchosetError(
        f"mean {list(spec.mean)} and std {list(spec.std)} are those of pixels from 0 to 255, and "
        f"images are in [0, 1]: divide by 255, {option}.mean '{mean}' {option}.std '{std}'"
    )


def _in_unit(values: tuple[float, ...]) -> list[float]:
    if max(values) == 1.0 or max(map(abs, values)) > UNITS:
        return [round(value / 255, 6) for value in values]
    return list(values)


def _check_moments(
    teacher: Classifier, frozen: Frozen, layers: Mapping[str, NormLayer], needs_batch_norm: bool
) -> None:
    """Name a BatchNorm layer that runs twice; leave out those that never run, unless none is
    left.
    """
    with torch.no_grad(), kernel_form("reference"):
        teacher.unused += frozen.find_unused(teacher.grey_images())
    teacher.pooled = _find_pooled(teacher, layers)
    left = layers.keys() - {*teacher.unused, *teacher.pooled}
    if needs_batch_norm and not left:
        first = (*teacher.unused, *teacher.pooled)[0]
        doing = "runs in evaluation" if teacher.unused else "sees more than one place an image"
        raise EchosetError(
            f"none of the teacher's BatchNorm layers {doing}, {first} "
            "neither, so there is nothing to match; use a recipe that needs none "
            "(--synthesis.recipe adversarial), or no generator: echoset collect shaders"
        )


def _find_pooled(teacher: Classifier, layers: Mapping[str, NormLayer]) -> tuple[str, ...]:
    """BatchNorm layers whose input is one place an image, in a network that answers with maps: few
    images are seen at once there, and such a layer's moments are those of a handful of numbers.
    """
    if not teacher.task.places(teacher.spec):
        return ()
    pooled: list[str] = []
    with ExitStack() as hooks, torch.no_grad():
        for name in layers:
            hook = partial(_note_pooled, pooled, name)
            layer = teacher.network.get_submodule(name)
            hooks.callback(layer.register_forward_pre_hook(hook).remove)
        with evaluating(teacher):
            teacher(teacher.grey_images())
    return tuple(pooled)


def _note_pooled(
    pooled: list[str], name: str, layer: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    if inputs[0].shape[2:].numel() == 1:
        pooled.append(name)


def check_gradient(teacher: Classifier, frozen: Frozen | None = None) -> None:
    """Refuse a network that tells no gradient at its images: nothing can be made by it. A `frozen`
    copy of it saves making one.
    """
    grey = teacher.grey_images().requires_grad_()
    with torch.enable_grad(), kernel_form("reference"):
        frozen = frozen or Frozen(teacher)
        logits = frozen(grey)
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(logits.sum(), grey, allow_unused=True)
        if gradient is not None:
            return
    raise EchosetError(
        f"no gradient leads from the answer of {teacher.spec.model} to its images: its forward "
        "computes under torch.no_grad, or leaves torch's numbers (numpy, argmax, one-hot). Take "
        "that out of it; as it is, only collecting without pushing works (echoset collect shaders "
        "--short draw)"
    )
