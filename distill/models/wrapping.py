"""A plain `nn.Module` made a `Classifier`: what it takes is asked of it, or of its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.models.classifier import OUTPUT, Classifier, ModelSpec, spec_of
from distill.models.modes import evaluating
from distill.models.outputs import USUAL_NAMES, list_shapes, list_tensors
from distill.models.settling import BOUND, say_refusal
from distill.names import name_classes, read_names
from distill.options import OutputForm
from distill.sizes import Size, read_size
from distill.tasks import USUAL
from synthesis_kernels.errors import EchosetError

WANTED = ("channels", "size", "mean", "std")
"""What has to be known of a network's images."""
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
"""Around a network in training; what counts is within."""
HINT = {
    "channels": "channels=3",
    "size": "size=32",
    "mean": "mean=(0.5,)",
    "std": "std=(0.25,)",
}
"""How each may be said."""


def as_classifier(
    network: nn.Module,
    *,
    channels: int | None = None,
    size: Size | None = None,
    classes: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    output: str | None = None,
    output_form: OutputForm | None = None,
    names: str | Sequence[str] | None = None,
    task: str = USUAL,
    name: str | None = None,
) -> Classifier:
    """The network as a teacher or student: it gets images in [0, 1], less `mean` and over `std`.

    Where nothing is said, channels are those of its first convolution, classes those of its answer
    to a grey image, and of a network of timm's all is known. What is still missing is an error.
    `output` and `output_form` say where the logits are in its answer, and what they are; otherwise
    it is found out here. `names` are the classes', in their order, or a file of them.
    """
    if isinstance(network, Classifier):
        network.settle()
        return network
    network = _unwrapped(network)
    said: dict[str, Any] = {
        "channels": channels,
        "size": None if size is None else read_size(size),
        "classes": classes,
        "mean": _numbers(mean),
        "std": _numbers(std),
    }
    said |= {"output": output, "output_form": output_form}
    known = _ask(network) | {key: value for key, value in said.items() if value is not None}
    missing = [key for key in WANTED if key not in known]
    if missing:
        raise EchosetError(_say_missing(network, missing))
    if "classes" not in known:
        known["classes"] = _count_classes(network, known)
    spec = ModelSpec(name or _name(network), task=task, **known)
    if names is not None:
        spec = name_classes(spec, read_names(names))
    classifier = Classifier(network, spec)
    classifier.settle()
    return classifier


def as_student(network: Classifier | nn.Module, contract: Mapping[str, Any]) -> Classifier:
    """The network as a student of images and answers as in the contract; without one, as what it
    says of itself.
    """
    if isinstance(network, Classifier) or not isinstance(network, nn.Module) or not contract:
        return as_classifier(network)
    network = _unwrapped(network)
    student = Classifier(network, spec_of(contract, _name(network)))
    student.check_forward()
    return student


def _unwrapped(network: nn.Module) -> nn.Module:
    """The network within torch.compile's and DataParallel's wrappers; what has no layers to reach
    is refused.
    """
    if not isinstance(network, nn.Module):
        raise EchosetError(f"a network is a torch.nn.Module, not a {type(network).__name__}")
    while isinstance(network, WRAPPERS) or hasattr(network, "_orig_mod"):
        inner: Any = network
        network = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
    for module in network.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise EchosetError(
                "the layers of TorchScript can't be reached in Python: give the module that was "
                "scripted, or torch.jit.save it and name the file, "
                "load_teacher(TeacherOptions('net.pt'))"
            )
        if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):
            raise EchosetError(
                "an exported program's module can't be set to evaluation: give the module that was "
                "exported, or torch.export.save the program and name the file, "
                "load_teacher(TeacherOptions('net.pt2'))"
            )
    return network


def require_alike(network: Classifier, other: Classifier, name: str) -> None:
    """Refuse a network, called by `name`, that takes other images than the teacher, or knows other
    classes.
    """
    for key in ("channels", "size", "classes", "task"):
        own = getattr(network.spec, key)
        wanted = getattr(other.spec, key)
        if own != wanted:
            raise EchosetError(f"{name} has {key} {own}, the teacher {wanted}")


def _numbers(values: float | Sequence[float] | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    if isinstance(values, int | float):
        return (float(values),)
    return tuple(float(value) for value in values)


def _ask(network: nn.Module) -> dict[str, Any]:
    """What the network tells: its first convolution its channels, one of timm's all of it."""
    known: dict[str, Any] = {}
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            known["channels"] = module.in_channels
            break
    told = getattr(network, "pretrained_cfg", None)
    if not isinstance(told, Mapping) or "input_size" not in told:
        return known
    channels, height, width = told["input_size"]
    known["size"] = (height, width)
    # Of a first convolution with other channels these are another network's.
    if known.setdefault("channels", channels) == channels:
        for key in ("mean", "std"):
            if told.get(key):
                known[key] = tuple(told[key])
    return known


def _count_classes(network: nn.Module, known: Mapping[str, Any]) -> int:
    """The classes that the network answers to two grey images."""
    # Any number will do: what comes out is looked at here.
    images = {key: value for key, value in known.items() if key not in OUTPUT}
    probe = Classifier(network, ModelSpec(_name(network), classes=2, **images))
    try:
        with evaluating(probe), torch.no_grad():
            answer = probe(probe.grey_images())
    except Exception as error:  # whatever the network raises
        with evaluating(probe), torch.no_grad():
            refusal = say_refusal(probe.raw_answer, probe.spec.shape, error)
        remedy = "" if BOUND in refusal else "; say channels= and size="
        raise EchosetError(f"{_name(network)} {refusal}{remedy}") from error
    tensors = list_tensors(answer)
    told = known.get("output")
    logits = tensors.get(told) if told else _logits_among(tensors)
    if logits is None or logits.ndim < 2:
        shapes = list_shapes(tensors) or type(answer).__name__
        raise EchosetError(
            f"{_name(network)} answers {shapes} to two images, and none of it is clearly their "
            "logits; say classes=, and of several tensors output="
        )
    return max(logits.shape[1], 2)  # one number stands for two classes


def _logits_among(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Those of two images that have a usual name, or else are the only ones there."""
    rows = [name for name, tensor in tensors.items() if tensor.ndim > 1 and len(tensor) == 2]
    usual = [name for name in rows if name in USUAL_NAMES]
    if len(rows) == 1:
        usual = rows
    return tensors[usual[0]] if usual else None


def _say_missing(network: nn.Module, missing: list[str]) -> str:
    given = ", ".join(HINT[key] for key in missing)
    text = (
        f"a {type(network).__name__} does not say its {', '.join(missing)}; wrap it: "
        f"as_classifier(network, {given}), with the numbers it was trained with"
    )
    if "mean" in missing:
        text += " (mean 0 and std 1 where it takes images in [0, 1] as they are)"
    return text


def _name(network: nn.Module) -> str:
    """Where the network's class is, as an import path is written."""
    kind = type(network)
    return f"{kind.__module__}.{kind.__qualname__}"
