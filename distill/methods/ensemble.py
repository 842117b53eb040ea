"""ONE (Lan et al. 2018): branches on a shared trunk, taught by labels and by their own gated
ensemble.
"""

from torch import Tensor

from synthesis_kernels.divergence import divergence

TEMPERATURE = 3.0


def gated(branches: list[Tensor], gates: Tensor) -> Tensor:  # n of (B, K), (B, n) -> (B, K)
    """The ensemble's logits Σ gᵢ zᵢ."""
    return sum(
        gate[:, None] * logits for gate, logits in zip(gates.unbind(1), branches, strict=True)
    )


def ensemble_loss(branches: list[Tensor], ensemble: Tensor) -> Tensor:
    """T²·Σᵢ KL(ensemble ‖ branchᵢ), T = 3; the ensemble itself learns from labels alone."""
    return sum(divergence(ensemble.detach(), logits, TEMPERATURE).mean() for logits in branches)


def ramp(share: Tensor) -> Tensor:  # part of the training that is over
    """exp(−5·(1 − e/80)²) of 200 epochs: from almost nothing to 1 at two fifths of the training."""
    return (-5 * (1 - (share / 0.4).clamp_max(1)).square()).exp()
