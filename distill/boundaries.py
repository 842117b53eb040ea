"""How near the decision boundaries of two networks are: where pushed images cross them, and whether
what fools one fools the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.loop import StepProgress
from distill.methods.boundary import push_over
from distill.tasks.places import decide

PUSHES = 20
"""Steps towards a boundary, at most."""
PGD_RADIUS = 0.031
PGD_RATE = 0.003
PGD_STEPS = 20

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Similarity:
    """What `boundary_similarity` gives, by the names it has in an evaluation."""

    boundary_pairs: int
    magnitude_similarity: float | None = None
    angle_similarity: float | None = None


@dataclass(frozen=True)
class Transfer:
    """What `adversarial_transfer` gives, by the names it has in an evaluation."""

    transfer: float | None = None
    transfer_teacher: float | None = None


def boundary_similarity(
    one: Network,
    other: Network,
    images: Tensor,  # (N, C, H, W) in [0, 1]
    quiet: bool = True,
) -> Similarity:
    """MagSim and AngSim over the images on which both agree, and every other class."""
    with torch.no_grad():
        answers = one(images)
        base = decide(answers)
        agreed = base == decide(other(images))
    images = images[agreed]
    base = base[agreed]
    classes = answers.shape[1]
    lengths: list[Tensor] = []
    cosines: list[Tensor] = []
    with StepProgress("boundary", classes - 1, quiet) as progress:
        for further in range(1, classes):
            target = (base + further) % classes
            first, first_crossed = push_over(one, images, base, target, None, PUSHES)
            second, second_crossed = push_over(other, images, base, target, None, PUSHES)
            crossed = first_crossed & second_crossed
            first_push = (first - images)[crossed].flatten(1)
            second_push = (second - images)[crossed].flatten(1)
            sizes = torch.stack([first_push.norm(dim=1), second_push.norm(dim=1)])
            lengths.append(sizes.amin(0) / sizes.amax(0).clamp_min(1e-12))
            cosines.append(F.cosine_similarity(first_push, second_push, dim=1))
            progress.update(further)
    length = torch.cat(lengths)
    if not len(length):
        return Similarity(0)
    return Similarity(len(length), length.mean().item(), torch.cat(cosines).mean().item())


def adversarial_transfer(
    classifier: Network,
    teacher: Network,
    images: Tensor,  # (N, C, H, W) in [0, 1]
    labels: Tensor,  # (N,)
) -> Transfer:
    """PGD within ±.031, 20 steps of .003, on the teacher; how often it fools the classifier, of the
    images both know.
    """
    with torch.no_grad():
        known = (decide(classifier(images)) == labels) & (decide(teacher(images)) == labels)
    images = images[known]
    labels = labels[known]
    if not len(images):
        return Transfer()
    moved = images.clone()
    for _ in range(PGD_STEPS):
        moved.requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(F.cross_entropy(teacher(moved), labels), moved)
        moved = moved.detach() + PGD_RATE * slope.sign()
        moved = moved.clamp(images - PGD_RADIUS, images + PGD_RADIUS).clamp(0, 1)
    with torch.no_grad():
        fooled = (decide(classifier(moved)) != labels).float().mean().item()
        fooled_teacher = (decide(teacher(moved)) != labels).float().mean().item()
    return Transfer(fooled, fooled_teacher)
