"""What a scorecard asks the teacher: its answers and features, how steady its decisions are, and
how far its boundaries.

Where a teacher decides at several places of an image, its task says what stands for the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distill.loop import StepProgress
from distill.models.frozen import Frozen
from distill.taps import Taps, find_stages
from distill.views import at_once, to_input
from inversion.scoring.measures import answer_entropies, count_pairs
from inversion.teacher import trained_views
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.views import ViewPlan, views


@dataclass(frozen=True)
class Answers:
    """What the teacher says to a set."""

    logits: Tensor  # (N, K) as of whole images
    decisions: Tensor  # (N, *places)
    pairs: Tensor  # (K²,)
    """How often there are which first and second choices."""
    margins: Tensor  # (N, *places) flat, float64
    """p₁ − p₂ of each decision."""
    entropies: Tensor  # (N, *places) flat, float64
    features: Tensor  # (N, D)
    """Its penultimate features."""
    gap: float | None
    """Distance of the whole set's BatchNorm moments from the running statistics; None without
    them.
    """


def gather_answers(
    frozen: Frozen,
    images: Tensor,  # (N, C, H, W) uint8
    batch: int,
    device: torch.device,
    quiet: bool,
) -> Answers:
    """Ask the teacher about every image, once."""
    classifier = frozen.classifier
    task = classifier.task
    if classifier.answer_shape[1:]:
        batch = min(batch, at_once(images))
    stages = find_stages(classifier, maps=False)
    has_moments = _has_moments(frozen)
    logits: list[Tensor] = []
    told: list[Decisions] = []
    features: list[Tensor] = []
    sums: Tensor | None = None  # (2, ΣC) means, and means of squares
    done = 0
    with (
        torch.no_grad(),
        Taps(classifier, stages) as taps,
        StepProgress("asking the teacher", len(images), quiet) as progress,
    ):
        for part in images.split(batch):
            pixels = to_input(part.to(device))
            if has_moments:
                answer, (mean, variance) = frozen.with_moments(pixels)
                moments = _share_of_moments(mean, variance, len(part) / len(images))
                sums = moments if sums is None else sums + moments
            else:
                answer = frozen(pixels)
            logits.append(task.summary(answer))
            told.append(look_at(answer, task.label_dtype))
            features.append(taps.embedding.flatten(1))
            done += len(part)
            progress.update(done)
    gap = None
    if sums is not None:
        gap = bn_gap(frozen, sums[0], sums[1] - sums[0].square())
    answers = Answers(
        torch.cat(logits),
        torch.cat([part.first for part in told]),
        torch.stack([part.pairs for part in told]).sum(0),
        torch.cat([part.margins for part in told]),
        torch.cat([part.entropies for part in told]),
        torch.cat(features),
        gap,
    )
    if not torch.isfinite(answers.logits).all():
        raise EchosetError(
            "the teacher's answers to these images are not finite; check its weights with echoset "
            "inspect"
        )
    return answers


class Decisions(NamedTuple):
    """What is kept of a batch's answers, at all their places."""

    first: Tensor  # (B, *places)
    pairs: Tensor  # (K²,)
    margins: Tensor  # (B·places,) float64
    entropies: Tensor  # (B·places,) float64


def look_at(answer: Tensor, dtype: torch.dtype) -> Decisions:  # (B, K, *places)
    """First choices, and how sure they are."""
    first, second = answer.topk(2, 1).indices.unbind(1)
    pairs = count_pairs(first.flatten(), second.flatten(), answer.shape[1])
    chances = answer.double().softmax(1)
    entropies = answer_entropies(chances).flatten()
    return Decisions(first.to(dtype), pairs, margins(answer).flatten(), entropies)


def margins(logits: Tensor) -> Tensor:  # (B, K, *places) -> (B, *places)
    """p₁ − p₂."""
    first, second = logits.double().softmax(1).topk(2, 1).values.unbind(1)
    return first - second


def _share_of_moments(mean: Tensor, variance: Tensor, share: float) -> Tensor:  # (2, ΣC) float64
    """A batch's part in the whole set's means and means of squares."""
    mean = mean.double()
    return torch.stack([mean, variance.double() + mean.square()]) * share


def _has_moments(frozen: Frozen) -> bool:
    """Whether every BatchNorm layer runs once in a pass, so that its moments can be had."""
    try:
        with torch.no_grad():
            frozen.with_moments(frozen.classifier.grey_images())
    except (EchosetError, ValueError):  # a layer that runs twice or never; no layer at all
        return False
    return True


def bn_gap(frozen: Frozen, mean: Tensor, variance: Tensor) -> float:  # (ΣC,), (ΣC,)
    """√ of the mean over all channels of ((μ − μ̂)/σ̂)² and ((σ² − σ̂²)/σ̂²)²."""
    target = frozen.target(relative=True)
    unit = target.unit.double()
    apart = torch.cat([(mean - target.mean) / unit.sqrt(), (variance - target.variance) / unit])
    return apart.square().mean().sqrt().item()


def first_choice(logits: Tensor) -> Tensor:  # (B, K) -> (B,)
    """The likeliest class, as the pair of first and second choice has it."""
    return logits.topk(2, 1).indices[:, 0]


def steadiness(
    frozen: Frozen,
    images: Tensor,  # (N, C, H, W) uint8
    chosen: Tensor,  # (N,) what the teacher decides as they are
    batch: int,
    device: torch.device,
    quiet: bool = True,
) -> float:
    """Share of images decided the same in one view of those the teacher was trained on, but for
    squares cut out.
    """
    spec = frozen.classifier.spec
    task = frozen.classifier.task
    trained = trained_views(spec)
    plan = ViewPlan(round(trained.shift * spec.side), trained.flip)
    pool = images.to(device)
    kept = torch.zeros((), dtype=torch.int64, device=device)
    done = 0
    with torch.no_grad(), StepProgress("steadiness", len(pool), quiet) as progress:
        for index in torch.arange(len(pool), device=device).split(batch):
            seen = views(pool, index, torch.zeros_like(index), plan, 0)
            kept += (first_choice(task.summary(frozen(seen))) == chosen[index]).sum()
            done += len(index)
            progress.update(done)
    return kept.item() / len(pool)


def boundary_distances(
    frozen: Frozen,
    images: Tensor,  # (N, C, H, W) uint8
    batch: int,
    device: torch.device,
    quiet: bool = True,
) -> Tensor:  # (N,)
    """(z₁ − z₂)/‖∇(z₁ − z₂)‖ in pixel L2, at most the diagonal of the cube of all images."""
    task = frozen.classifier.task
    most = math.sqrt(images[0].numel())
    distances: list[Tensor] = []
    done = 0
    with StepProgress("distances to the boundary", len(images), quiet) as progress:
        for part in images.split(batch):
            pixels = to_input(part.to(device)).requires_grad_(True)
            first, second = task.summary(frozen(pixels)).topk(2, 1).values.T
            lead = first - second
            (slope,) = torch.autograd.grad(lead.sum(), pixels)
            distance = lead.detach() / slope.flatten(1).norm(dim=1)
            distances.append(distance.nan_to_num(0.0, most).clamp(0, most))
            done += len(part)
            progress.update(done)
    return torch.cat(distances)
