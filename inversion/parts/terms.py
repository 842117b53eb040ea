"""What the generator is trained against: class, disagreement, φ and likeness. (The BatchNorm term
is `MomentTarget.distance`.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.tasks.places import per_image
from distill.team import SOLO, Team
from synthesis_kernels.divergence import adversarial_divergence


def phi(
    teacher_logits: Tensor,  # (B, K, *places)
    held: Tensor,  # (K,) samples of each class in the buffer
    capacity: int,
    gamma: float,
    ceiling: float = 5.0,
    team: Team = SOLO,
) -> Tensor:  # (B,)
    """φ = diversity · difficulty, scaled to mean 1; the ceiling keeps one sample from owning a
    confident batch's gradient.

    Diversity is 1 − n_c/N with c the teacher's class: a class the buffer holds little of counts
    more. Difficulty is (1 − p_c)^γ, as in the focal loss: a sample near a boundary counts more.
    With several decisions an image, each is their mean. The scale is that of all the team's images.
    """
    sure, choice = F.softmax(teacher_logits, 1).max(1)
    lacking = per_image((1 - held / capacity)[choice])
    value = lacking * per_image((1 - sure) ** gamma)
    return (value / team.mean(value.mean()).clamp_min(1e-6)).clamp_max(ceiling)


def class_loss(
    teacher_logits: Tensor,  # (B, K, *places)
    targets: Tensor,  # (B, *places)
) -> Tensor:  # (B,)
    """L_cls: the teacher's cross-entropy with what was asked for."""
    return per_image(F.cross_entropy(teacher_logits, targets, reduction="none"))


def adversarial_loss(
    teacher_logits: Tensor, student_logits: Tensor
) -> Tensor:  # (B, K, *places) twice -> (B,)
    """L_adv = −KL(p_T ‖ p_S) where both choose the same class, else 0: a sample the student has
    wrong is hard enough.
    """
    return -per_image(adversarial_divergence(teacher_logits, student_logits))


# (B / team, C, H, W), (B,) -> ()
def likeness(images: Tensor, wanted: Tensor, team: Team = SOLO) -> Tensor:
    """How alike the images of one class are: exp(4(ρ − 1)) with ρ the correlation of two images,
    averaged over the others of an image's class and then over images, and its log.

    That is the uniformity loss of Wang & Isola (2020) on images averaged over blocks (8 × 8 of them
    or so) and standardised. Statistics over a batch can't tell ten pictures shown twenty times each
    from two hundred; this can. An image that is alone in its class counts as unlike. A team gives
    its parts of the images, and all the classes.
    """
    small = team.gather(F.avg_pool2d(images, max(1, round(min(images.shape[2:]) / 8))))
    # No copy where channels are last in memory.
    return _Likeness.apply(small.permute(0, 2, 3, 1).flatten(1), wanted)


ALONE = math.log(1e-6)
"""Likeness where no class has two images."""
FAINT = 0.1
"""Length under which an image counts as blank: it has no direction to be pushed in."""


class _Likeness(torch.autograd.Function):
    """Likeness as a log-sum-exp over pairs, and its gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, small: Tensor, wanted: Tensor) -> Tensor:  # (B, D), (B,) -> ()
        apart = small - small.mean(1, keepdim=True)
        length = torch.linalg.vector_norm(apart, dim=1, keepdim=True).clamp_min_(FAINT)
        unit = apart.div_(length)
        same = (wanted[:, None] == wanted).fill_diagonal_(False)
        # (B, B) the logarithm of what a pair weighs: nothing in two classes, or with itself.
        weight = (same / same.sum(1, keepdim=True).clamp_min_(1)).to(small.dtype).log_()
        pairs = torch.addmm(weight, unit, unit.T, alpha=4)
        mean_over_images = 4 + math.log(len(wanted))
        total = pairs.logsumexp((0, 1)).clamp_min_(ALONE + mean_over_images)
        ctx.save_for_backward(unit, length, pairs, total)
        return total - mean_over_images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        unit, length, pairs, total = ctx.saved_tensors
        share = (pairs - total).exp_()
        pull = (share + share.T) @ unit
        # Along itself an image's length takes it back, unless it is blank.
        along = (pull * unit).sum(1, keepdim=True).mul_(length > FAINT)
        # Units have mean 0, and so has what pulls at them.
        return pull.addcmul_(unit, along, value=-1).mul_(4 * grad / length), None
