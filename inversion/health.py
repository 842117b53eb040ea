"""What is wrong with a teacher, found before any work: by its numbers, and by its answers to
pictures that nobody took.

What can't be right ends the run. What may be right is said once, and the run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from distill.models import Classifier
from distill.models.frozen import NormLayer, find_batch_norms
from distill.models.modes import evaluating
from distill.runtime import Runtime
from inversion.inspection import check_network
from inversion.pixels import FLATTISH, Pixels, remembered_pixels
from inversion.sources import find_drawer
from inversion.sources.random import Random
from synthesis_kernels.errors import EchosetError

SOURCES = ("noise", "strokes", "shaders")
"""What the pictures are drawn by, as many of each: textures, figures on a ground, scenes."""
MOST = 8
"""Pictures of each source; fewer where they are large."""
PIXELS = 8 * 64 * 64
"""Pixels of one channel in the pictures of one source, about."""
HUGE = 1e4
"""Logits above this lose their digits in 16 bits, and a softmax of them has no gradient."""
UNIFORM = 0.98
"""Part of the greatest entropy from which on an answer says nothing."""
SAME = 1e-3
"""Least distance (total variation) of an answer to the mean answer, on average."""
ALIKE = 0.02
"""How far two answers to one picture may lie apart, relative to all answers' deviation."""
DEAF = 1e-6
"""The same of logits, relative to their size: below it the picture plays no part."""


@dataclass(frozen=True)
class Health:
    """What was found, none of it reason enough to refuse the teacher."""

    warnings: list[str]
    pixels: Pixels | None
    """None where it can't be told: no BatchNorm, or none that a linear layer leads to."""
    confidence: float
    """Mean of the largest probability, over all pictures and decisions."""


def check_health(teacher: Classifier, runtime: Runtime = Runtime()) -> None:
    """Refuse a teacher that can't be right, and say once what may be wrong with it."""
    for warning in examine(teacher).warnings:
        runtime.say(f"warning: {warning}")


def examine(teacher: Classifier, untrained: list[str] | None = None) -> Health:
    """Look at a teacher's numbers and at its answers. What can't be right is an error. `untrained`
    is what `check_network` gave, where it was called before.
    """
    layers = find_batch_norms(teacher.network)
    if untrained is None:
        untrained = check_network(teacher)
    with evaluating(teacher), torch.inference_mode():
        pictures = draw_pictures(teacher)
        with _silent(layers) as silent:
            answers = [teacher(part).float() for part in pictures]
        untrained = [name for name in untrained if name not in silent]
        fickle = _doubt_likeness(teacher, pictures[0], answers[0])
        pixels = remembered_pixels(teacher, pictures[-1], untrained)
    logits = torch.cat(answers)  # (N, K, *places)
    _check_finite(logits)
    if not untrained:
        _check_hearing(logits)
    warnings = [_say_untrained(untrained)] if untrained else []
    warnings += _doubt_pixels(teacher, pixels)
    warnings += fickle + _doubt_answers(logits)
    confidence = logits.softmax(1).amax(1).mean().item()
    return Health(warnings, pixels, confidence)


@contextmanager
def _silent(layers: Mapping[str, NormLayer]) -> Iterator[set[str]]:
    """The layers that take no part in the passes inside: those of an auxiliary head, say."""
    silent = set(layers)
    handles = []
    for name, layer in layers.items():
        module: nn.Module = layer
        hook = partial(_take_out, silent, name)
        handles.append(module.register_forward_pre_hook(hook))
    try:
        yield silent
    finally:
        for handle in handles:
            handle.remove()


def _take_out(silent: set[str], name: str, *_: object) -> None:
    silent.discard(name)


def draw_pictures(teacher: Classifier) -> list[Tensor]:  # each (B, C, H, W) in [0, 1]
    """The same few pictures of each source for every teacher of this shape."""
    spec = teacher.spec
    device = teacher.mean.device
    count = max(4, min(MOST, PIXELS // (spec.height * spec.width)))
    pictures = []
    for name in SOURCES:
        random = Random("cpu", "health", name)
        drawn = find_drawer(name)().draw(random, count, *spec.shape)
        pictures.append(drawn.to(device))
    return pictures


def _check_finite(logits: Tensor) -> None:  # (N, K, *places)
    """Refuse answers that are no numbers."""
    bad = ~logits.flatten(1).isfinite().all(1)
    if bad.any():
        raise EchosetError(
            f"the teacher's answer to {int(bad.sum())} of {len(logits)} made-up pictures is not "
            "finite: look whether --teacher.mean and --teacher.std are right, and whether the "
            "checkpoint is whole"
        )


def _check_hearing(logits: Tensor) -> None:  # (N, K, *places)
    """Refuse answers that no picture changes. All zero they are of a head that is yet to learn."""
    spread = (logits - logits.mean(0)).abs().amax()
    largest = logits.abs().amax()
    if largest > 0 and spread <= DEAF * largest:
        raise EchosetError(
            f"the teacher gives {len(logits)} quite different pictures the same answer, so nothing "
            "can be learnt from it: its weights are not those of a trained network, or its "
            "BatchNorm statistics are not those of these weights"
        )


def _doubt_likeness(teacher: Classifier, pictures: Tensor, answers: Tensor) -> list[str]:
    """Whether a picture's answer is another at another time, or beside others."""
    spread = answers.std().item()
    alike = partial(torch.allclose, rtol=ALIKE, atol=ALIKE * spread)
    if not answers.isfinite().all() or alike(teacher(pictures[:1]).float(), answers[:1]):
        return []
    if not alike(teacher(pictures).float(), answers):
        return [
            "it answers the same pictures differently each time: something random is on in "
            "evaluation, such as F.dropout without training=self.training"
        ]
    return [
        "its answer to a picture depends on the others in the batch, as with a BatchNorm without "
        "running statistics: no answer that is kept will be its answer later"
    ]


def _doubt_answers(logits: Tensor) -> list[str]:  # (N, K, *places)
    """What makes no sense in the answers."""
    count, classes = logits.shape[:2]
    log_chances = logits.log_softmax(1)
    chances = log_chances.exp()
    entropy = -(chances * log_chances).sum(1).mean().item()
    doubts = []
    largest = logits.abs().amax().item()
    if largest > HUGE:
        doubts.append(
            f"its logits are as large as {largest:.0e}: is std right (--teacher.std), and are "
            "these logits and not something scaled?"
        )
    if entropy > UNIFORM * math.log(classes):
        doubts.append(
            f"its answers to {count} made-up pictures say nothing: all {classes} classes are "
            "nearly as likely. Are these its trained weights, and does it answer logits, not "
            "probabilities?"
        )
        return doubts
    distance = (chances - chances.mean(0)).abs().sum(1).mean().item() / 2
    if distance < SAME:
        label = int(chances.transpose(0, 1).flatten(1).mean(1).argmax())
        doubts.append(
            f"it answers class {label} to all of {count} quite different pictures: look whether "
            "mean and std are right, and whether its BatchNorm statistics are those of its weights"
        )
    return doubts


def _say_untrained(layers: list[str]) -> str:
    named = ", ".join(layers[:3])
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return (
        f"BatchNorm layer {named}{more} was never trained (every mean is 0, every variance 1); are "
        "these its trained weights?"
    )


def _doubt_pixels(teacher: Classifier, pixels: Pixels | None) -> list[str]:
    """Whether mean and std may be others than those of the training."""
    doubt = pixels.doubt if pixels else None
    if not pixels or not doubt:
        return []
    spec = teacher.spec
    return [
        f"mean {_short(spec.mean)} and std {_short(spec.std)} look wrong: by them layer "
        f"{pixels.layer} was trained on pixels of mean {pixels.mean:.2g} and deviation "
        f"{pixels.std:.2g}, {doubt}. {_remedy(teacher, pixels)}"
    ]


def _remedy(teacher: Classifier, pixels: Pixels) -> str:
    """What mean and std are likely to be."""
    untold = set(teacher.spec.mean) == {0.0} and set(teacher.spec.std) == {1.0}
    if untold and pixels.mean > 2:
        return "If it took pixels from 0 to 255, give --teacher.std '[0.003921569]'"
    if pixels.std < FLATTISH:
        return "If it took images in [0, 1] as they are, leave --teacher.mean and .std away"
    return (
        "Give --teacher.mean and --teacher.std as in Normalize(mean, std) of its training; "
        "ImageNet's are '[0.485,0.456,0.406]' and '[0.229,0.224,0.225]'"
    )


def _short(values: tuple[float, ...]) -> str:
    return str([round(value, 3) for value in values])
