"""The teacher's answers to views of a set: asked once per (image, view), in large batches, then never again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.augment import make_views
from distill.loop import StepProgress
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.options import ViewOptions
from synthesis_kernels.backend import mixed_precision

CHUNK = 500


def to_input(pixels: Tensor) -> Tensor:
    """Stored pixels as a network takes them: float in [0, 1], channels last."""
    return (pixels.float() / 255).contiguous(memory_format=torch.channels_last)


def ask(network: nn.Module, images: Tensor, precision: torch.dtype) -> Tensor:  # (B, C, H, W) in [0, 1] -> (B, K)
    """A network's float32 logits, without gradients."""
    with torch.no_grad(), mixed_precision(images.device, precision):
        return network(images).float()


def bank_answers(
    teacher: Classifier,
    pool: Tensor,  # (N, C, H, W) uint8
    per_image: int,
    options: ViewOptions,
    seed: int,
    precision: torch.dtype,
    quiet: bool = False,
) -> Tensor:  # (N, V, K) float32
    """The teacher's logits for views 0 … V−1 of every image. The views themselves need no storing: `make_views` repeats them."""
    frozen = Frozen(teacher, precision)
    answers: list[Tensor] = []
    with StepProgress("asking the teacher", per_image * len(pool), quiet) as progress:
        for view in range(per_image):
            for index in torch.arange(len(pool), device=pool.device).split(CHUNK):
                images = make_views(pool, index, torch.full_like(index, view), options, seed)
                answers.append(ask(frozen, images, precision))
                progress.update(view * len(pool) + int(index.numel()))
    return torch.cat(answers).view(per_image, len(pool), -1).transpose(0, 1).contiguous()
