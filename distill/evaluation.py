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


def evaluate(
    classifier: Classifier,
    data: LabelledImages,
    teacher: Classifier | None = None,
    device: Device = "auto",
    quiet: bool = False,
) -> Evaluation:
    """Accuracy on true labels, and agreement with `teacher` if one is given."""
    spec, shape = classifier.spec, tuple(data.images.shape[1:])
    if shape != (spec.channels, spec.size, spec.size):
        raise EchosetError(f"{data.name} has images of shape {shape}, the model takes {(spec.channels, spec.size, spec.size)}")
    where = resolve_device(device)
    labels = data.labels.to(where)
    if (top := int(labels.max())) >= spec.classes or int(labels.min()) < 0:
        raise EchosetError(
            f"{data.name} has labels from {int(labels.min())} to {top}, the model knows classes 0 to {spec.classes - 1}"
        )
    chosen = predict(classifier, data.images, where, quiet=quiet).argmax(1)
    right = chosen == labels
    totals = torch.bincount(labels, minlength=spec.classes).tolist()
    rights = torch.bincount(labels[right], minlength=spec.classes).tolist()
    per_class = [correct / total if total else None for correct, total in zip(rights, totals, strict=True)]
    agreement = None
    if teacher is not None:
        agreement = (predict(teacher, data.images, where, quiet=quiet).argmax(1) == chosen).float().mean().item()
    return Evaluation(right.float().mean().item(), per_class, agreement, len(data))
