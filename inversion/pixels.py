"""The pixels that a teacher was trained on, as its first BatchNorm layer remembers them.

They tell whether its mean and std are those of its training.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.models import Classifier
from distill.models.frozen import NormLayer, find_batch_norms

FLAT = 0.02
"""Pixels deviate by more than this, whatever they show."""
FLATTISH = 0.08
"""The same of images that are neither mostly black nor mostly white."""
SURE = 8
"""Standard errors of the mean that must fit between black and white."""


class Pixels(NamedTuple):
    """The images that a teacher was trained on, as its first BatchNorm layer remembers them."""

    layer: str
    mean: float
    std: float
    """Both as pixels of images in [0, 1], if the teacher's normaliser is the right one."""

    @property
    def doubt(self) -> str | None:
        """Why no images in [0, 1] can be like this, if none can."""
        far = abs(self.mean - 0.5) > 0.65
        # Pixels of this mean have their greatest deviation when all are black or white. What a
        # layer remembers is an estimate; without the right std it is at least twice too large.
        most = 1.5 * math.sqrt(max(self.mean * (1 - self.mean), 0)) + 0.05
        if far or self.std > most:
            return "which images in [0, 1] can't have"
        if self.std < FLAT or (self.std < FLATTISH and 0.05 < self.mean < 0.95):
            return "which would be nearly plain images"
        return None


class _Reached(Exception):
    """The first BatchNorm layer has its input; the rest of the pass is of no use."""


def remembered_pixels(
    teacher: Classifier,
    pictures: Tensor,  # (B, C, H, W) in [0, 1]
    untrained: Collection[str] = (),
) -> Pixels | None:
    """Mean and deviation of the pixels that the first BatchNorm layer's statistics were taken of.

    Up to there a network is linear, so the layer's means tell the mean level of grey, whatever the
    images showed; and its variances, compared with those that the pictures cause, the deviation.
    Channels count by how well they hear a level of grey, since others depend on what was shown.
    """
    spec = teacher.spec
    grey = torch.tensor([0.0, 0.5, 1.0], device=pictures.device).view(3, 1, 1, 1)
    levels = grey.expand(3, *spec.shape)
    layers = find_batch_norms(teacher.network)
    at_levels = _first_input(teacher, layers, levels)
    if at_levels is None:
        return None
    name, layer, inputs = at_levels
    if name in untrained:
        return None
    if inputs.shape[1] != len(layer.running_mean):
        return None
    black, half, white = inputs.flatten(1).unflatten(1, (inputs.shape[1], -1)).mean(2)  # (C')
    heard = white - black
    if (half - (white + black) / 2).abs().amax() > 1e-3 * heard.abs().amax():
        return None  # not linear
    scale = layer.running_var.float().clamp_min(1e-12).rsqrt()
    gain = heard * scale
    total = gain.square().sum()
    offset = (layer.running_mean.float() - black) * scale
    mean = (gain @ offset) / total
    error = (offset - mean * gain).square().mean().sqrt() / total.sqrt()
    reached = _first_input(teacher, layers, pictures)
    if reached is None or not error * SURE < max(1.0, mean.abs().item()):
        return None
    variance = reached[2].transpose(0, 1).flatten(1).var(1).clamp_min(1e-12)
    weight = heard.square() / variance
    ratio = (layer.running_var.float().clamp_min(1e-12) / variance).log() / 2
    std = pictures.std() * ((weight * ratio).sum() / weight.sum()).exp()
    return Pixels(name, round(mean.item(), 4), round(std.item(), 4))


def _first_input(
    teacher: Classifier, layers: Mapping[str, NormLayer], images: Tensor
) -> tuple[str, NormLayer, Tensor] | None:  # (B, C', …)
    """The BatchNorm layer that runs first, and what it is given."""
    reached: list[tuple[str, NormLayer, Tensor]] = []

    def stop_at(name: str, layer: NormLayer, inputs: tuple[Tensor, ...]) -> None:
        reached.append((name, layer, inputs[0].float()))
        raise _Reached

    handles = []
    for name, layer in layers.items():
        module: nn.Module = layer
        handles.append(
            module.register_forward_pre_hook(
                lambda own, given, name=name: stop_at(name, own, given)
            )
        )
    try:
        teacher(images)
    except _Reached:
        return reached[0]
    finally:
        for handle in handles:
            handle.remove()
    return None
