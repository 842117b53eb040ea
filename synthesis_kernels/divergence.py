"""Per-sample disagreement between teacher and student, and the decision-adversarial mask."""

import torch.nn.functional as F
from torch import Tensor


def kl_divergence(
    teacher_logits: Tensor,  # (B, K, *)
    student_logits: Tensor,  # (B, K, *)
    temperature: float = 1.0,
) -> Tensor:  # (B, *)
    """KL(p_T ‖ p_S)·T², both softened by the temperature; T² keeps gradients comparable across temperatures."""
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(1) * temperature**2


def same_decision(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:  # (B, *) bool
    """Where student and teacher pick the same class: the samples the generator may still make harder."""
    return teacher_logits.argmax(1) == student_logits.argmax(1)
