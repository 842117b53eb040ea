"""How a teacher chooses: which of its answers lie in the window, and how a source is shown to
it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.loop import StepProgress
from distill.models import Classifier
from distill.tasks import Task
from distill.tasks.places import count_decisions, decide, per_image
from distill.views import ask, to_input
from inversion.options import CollectOptions
from inversion.scoring.measures import coverage
from inversion.sources.stream import Source

SHARES = (0.0, 0.5, 1.0)
"""Parts of a source's images that are exposed, to see which suits the teacher."""
LOOK = 4
"""Blocks of a source that are looked at to decide whether it wants exposure, …"""
PIXELS = 512 * 32**2
"""… so many pixels of each, …"""
LEAST = 64
"""… and images at least."""
WORTH = 0.1
"""What exposure has to add to η, the evenness of the classes, to be taken up."""


def in_window(
    logits: Tensor,  # (B, K, *places)
    task: Task,
    options: CollectOptions,
    drawn: bool,
) -> Tensor:  # (B,) bool
    """Which answers may be taken, by their mean over an image's places; `only` is about what a
    source gives, not about what is made of it.
    """
    first, second = logits.softmax(1).topk(2, dim=1).values.unbind(1)
    confidence = per_image(first)
    margin = per_image(first - second)
    low, high = options.confidence
    least, most = options.margin
    allowed = (confidence >= low) & (confidence <= high) & (margin >= least) & (margin <= most)
    if options.only and drawn:
        groups = task.group(decide(logits), logits.shape[1])
        allowed &= torch.isin(groups, torch.tensor(options.only, device=logits.device))
    return allowed


def choose_exposure(
    source: Source, teacher: Classifier, options: CollectOptions, quiet: bool
) -> float:
    """The part of the images to expose: as asked, or whichever of 0, ½ and 1 spreads the first
    blocks most evenly over the teacher's classes, where that gains enough.
    """
    if options.expose is not None:
        return options.expose
    if not source.may_be_exposed:
        return 0.0
    evenness = _look(source, teacher, quiet)
    best = max(evenness, key=evenness.__getitem__)
    gains = evenness[best] > evenness[0.0] + WORTH
    return best if gains else 0.0


def _look(source: Source, teacher: Classifier, quiet: bool) -> dict[float, float]:
    """Coverage η of the classes in the first blocks, for each share that may be exposed."""
    classes = teacher.spec.classes
    blocks = LOOK if source.blocks is None else min(LOOK, source.blocks)
    counts = {
        share: torch.zeros(classes, dtype=torch.long, device=source.device) for share in SHARES
    }
    total = blocks * len(SHARES)
    with StepProgress(f"looking at {source.address}", total, quiet) as progress:
        for number in range(blocks):
            images = source.block(number)
            images = images[: _looked_at(images)]
            for done, share in enumerate(SHARES, number * len(SHARES) + 1):
                shown = source.shown(images, number, share)
                decisions = decide(ask(teacher, to_input(shown), torch.float32))
                counts[share] += count_decisions(teacher.task.group(decisions, classes), classes)
                progress.update(done)
    return {share: coverage(count) for share, count in counts.items()}


def _looked_at(images: Tensor) -> int:  # (B, C, H, W)
    """How many of a block's images are looked at: of larger ones fewer, as they take longer."""
    pixels = images.shape[2] * images.shape[3]
    return min(len(images), max(LEAST, PIXELS // pixels))
