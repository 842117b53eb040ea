"""Deep mutual learning (Zhang et al. 2018): peers that learn from labels and from one another,
without a teacher.
"""

from torch import Tensor

from synthesis_kernels.divergence import divergence


def mutual_loss(logits: list[Tensor]) -> Tensor:  # n of (B, K)
    """Σᵢ mean over j ≠ i of KL(p_j ‖ p_i), T = 1; each peer takes the others' answers as given."""
    pairs = [
        divergence(other.detach(), one, 1.0).mean()
        for one in logits
        for other in logits
        if other is not one
    ]
    return sum(pairs) / (len(logits) - 1)
