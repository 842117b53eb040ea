"""Knowledge distillation (Hinton et al. 2015): match the teacher's softened distribution."""

from torch import Tensor

from synthesis_kernels.divergence import divergence


def hinton_loss(
    student_logits: Tensor,  # (B, K)
    teacher_logits: Tensor,  # (B, K)
    temperature: float,
    weights: Tensor | None = None,  # (B,) importance weights, or None for equal ones
) -> Tensor:
    """mean of w·T²·KL(σ(z_T/T) ‖ σ(z_S/T)): label-free, since a synthetic image has no label but
    the teacher's.
    """
    apart = divergence(teacher_logits, student_logits, temperature)
    return (apart if weights is None else apart * weights).mean()
