"""Knowledge distillation (Hinton et al. 2015): match the teacher's softened distribution."""

from __future__ import annotations

from torch import Tensor

from distill.batch import Batch
from distill.methods import Method
from synthesis_kernels.divergence import mean_divergence


def hinton_loss(
    student_logits: Tensor,  # (B, K, *places)
    teacher_logits: Tensor,  # (B, K, *places)
    temperature: float,
    weights: Tensor | None = None,  # (B,) importance weights, or None for equal ones
) -> Tensor:
    """mean of w·T²·KL(σ(z_T/T) ‖ σ(z_S/T)): label-free, since a synthetic image has no label but
    the teacher's.
    """
    return mean_divergence(teacher_logits, student_logits, temperature, weights)


def _loss(batch: Batch) -> Tensor:
    return hinton_loss(batch.logits, batch.answers, batch.options.temperature, batch.importance)


HINTON = Method(
    "hinton",
    1.0,
    frozenset({"answers"}),
    _loss,
    labels=0.0,
    beside_labels=(0.9, 0.1),
    compares="never",
)
