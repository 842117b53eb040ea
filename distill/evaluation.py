"""How well a classifier does on labelled images, and how often it decides as its teacher does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data import LabelledImages
from distill.loop import StepProgress
from distill.models import Classifier
from distill.options import Device
from distill.views import to_input
from synthesis_kernels.backend import resolve_device
from synthesis_kernels.errors import EchosetError


@dataclass(frozen=True)
class Evaluation:
    """Figures on one set of labelled images."""

    accuracy: float
    per_class: list[float | None]
    """Accuracy on each true class; None where the data has none of it."""
    agreement: float | None
    """Share of images on which the teacher, if one was given, chose the same class."""
    images: int


def predict(
    classifier: Classifier,
    images: Tensor,  # (N, C, H, W) uint8
    device: torch.device,
    batch: int = 500,
    title: str = "evaluating",
    quiet: bool = True,
) -> Tensor:  # (N, K) float32, on the device
    """Logits in float32 for stored images, in evaluation mode."""
    classifier = classifier.to(device, memory_format=torch.channels_last).eval()
    outputs = []
    with torch.inference_mode(), StepProgress(title, len(images), quiet) as progress:
        for start in range(0, len(images), batch):
            outputs.append(classifier(to_input(images[start : start + batch].to(device))).float())
            progress.update(min(start + batch, len(images)))
    return torch.cat(outputs)


def check_fit(classifier: Classifier, data: LabelledImages) -> None:
    """Refuse data whose shape or labels the model can't answer for."""
    spec, shape = classifier.spec, tuple(data.images.shape[1:])
    if shape != (spec.channels, spec.size, spec.size):
        raise EchosetError(f"{data.name} has images of shape {shape}, the model takes {(spec.channels, spec.size, spec.size)}")
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= spec.classes:
        raise EchosetError(f"{data.name} has labels from {low} to {high}, the model knows classes 0 to {spec.classes - 1}")


def evaluate(
    classifier: Classifier,
    data: LabelledImages,
    teacher: Classifier | None = None,
    device: Device = "auto",
    quiet: bool = False,
) -> Evaluation:
    """Accuracy on true labels, and agreement with `teacher` if one is given."""
    check_fit(classifier, data)
    if teacher is not None:
        check_fit(teacher, data)
    where, classes = resolve_device(device), classifier.spec.classes
    labels = data.labels.to(where)
    chosen = predict(classifier, data.images, where, quiet=quiet).argmax(1)
    right = chosen == labels
    totals = torch.bincount(labels, minlength=classes).tolist()
    rights = torch.bincount(labels[right], minlength=classes).tolist()
    per_class = [correct / total if total else None for correct, total in zip(rights, totals, strict=True)]
    agreement = None
    if teacher is not None:
        agreement = (predict(teacher, data.images, where, quiet=quiet).argmax(1) == chosen).float().mean().item()
    return Evaluation(right.float().mean().item(), per_class, agreement, len(data))
