"""What the generator is trained against: class, disagreement, φ and likeness. (The BatchNorm term
is `MomentTarget.distance`.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.tasks.places import per_image
from synthesis_kernels.divergence import adversarial_divergence


def phi(
    teacher_logits: Tensor,  # (B, K, *places)
    held: Tensor,  # (K,) samples of each class in the buffer
    capacity: int,
    gamma: float,
    ceiling: float = 5.0,
) -> Tensor:  # (B,)
    """φ = diversity · difficulty, scaled to mean 1; the ceiling keeps one sample from owning a
    confident batch's gradient.

    Diversity is 1 − n_c/N with c the teacher's class: a class the buffer holds little of counts
    more. Difficulty is (1 − p_c)^γ, as in the focal loss: a sample near a boundary counts more.
    With several decisions an image, each is their mean.
    """
    sure, choice = F.softmax(teacher_logits, 1).max(1)
    lacking = per_image((1 - held / capacity)[choice])
    value = lacking * per_image((1 - sure) ** gamma)
    return (value / value.mean().clamp_min(1e-6)).clamp_max(ceiling)


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


def likeness(images: Tensor, wanted: Tensor) -> Tensor:  # (B, C, H, W), (B,) -> ()
    """How alike the images of one class are: exp(4(ρ − 1)) with ρ the correlation of two images,
    averaged over the others of an image's class and then over images, and its log.

    That is the uniformity loss of Wang & Isola (2020) on images averaged over blocks (8 × 8 of them
    or so) and standardised. Statistics over a batch can't tell ten pictures shown twenty times each
    from two hundred; this can. An image that is alone in its class counts as unlike.
    """
    small = F.avg_pool2d(images, max(1, round(images.shape[-1] / 8))).flatten(1)
    # A blank image has no direction to be pushed in.
    small = F.normalize(small - small.mean(1, keepdim=True), dim=1, eps=0.1)
    itself = torch.eye(len(wanted), dtype=torch.bool, device=wanted.device)
    pairs = (wanted[:, None] == wanted) & ~itself
    near = (4 * (small @ small.T - 1)).exp() * pairs
    return (near.sum(1) / pairs.sum(1).clamp_min(1)).mean().clamp_min(1e-6).log()
