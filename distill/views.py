"""A bank of views with the teacher's answers: the teacher is asked once per view, in large batches, then no more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.augment import mixup, random_views
from distill.loop import StepProgress
from distill.models import Classifier
from distill.options import ViewOptions
from synthesis_kernels.backend import mixed_precision

CHUNK = 500


@dataclass(frozen=True)
class ViewBank:
    """Views as the student will see them, and what the teacher says to each."""

    images: Tensor  # (N·V, C, H, W) uint8
    logits: Tensor  # (N·V, K) float32


def make_views(images: Tensor, options: ViewOptions, generator: torch.Generator) -> Tensor:  # (B, C, H, W) uint8 -> same
    """One random view of each image, some of them blended with a neighbour; rounded, so that they can be stored."""
    views = random_views(images.float() / 255, options, generator)
    if options.mixup:
        chosen = torch.rand(len(views), 1, 1, 1, generator=generator, device=views.device) < options.mixup
        views = torch.where(chosen, mixup(views, generator), views)
    return (views * 255).round().to(torch.uint8)


def to_input(pixels: Tensor) -> Tensor:
    """Stored pixels as a network takes them: float in [0, 1], channels last."""
    return (pixels.float() / 255).contiguous(memory_format=torch.channels_last)


def ask(teacher: Classifier, pixels: Tensor, precision: torch.dtype) -> Tensor:
    """The teacher's float32 logits for stored pixels."""
    with torch.no_grad(), mixed_precision(pixels.device, precision):
        return teacher(to_input(pixels)).float()


def build_bank(
    teacher: Classifier,
    images: Tensor,  # (N, C, H, W) uint8
    per_image: int,
    options: ViewOptions,
    generator: torch.Generator,
    precision: torch.dtype,
    quiet: bool = False,
) -> ViewBank:
    """Ask the teacher about `per_image` views of every image."""
    pixels, logits, done = [], [], 0
    with StepProgress("asking the teacher", per_image * len(images), quiet) as progress:
        for _ in range(per_image):
            # Shuffled, so that a blend meets another partner each time.
            for chunk in images[torch.randperm(len(images), generator=generator, device=images.device)].split(CHUNK):
                pixels.append(make_views(chunk, options, generator))
                logits.append(ask(teacher, pixels[-1], precision))
                done += len(chunk)
                progress.update(done)
    return ViewBank(torch.cat(pixels), torch.cat(logits))
