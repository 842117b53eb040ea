"""Deep mutual learning (Zhang et al. 2018): peers that learn from labels and from one another,
without a teacher.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from distill.batch import Batch, Pair, Part, add_up, weighted
from distill.methods import Method
from distill.methods.copies import build_like
from synthesis_kernels.divergence import mean_divergence


def mutual_loss(logits: list[Tensor]) -> Tensor:  # n of (B, K, *places)
    """Σᵢ mean over j ≠ i of KL(p_j ‖ p_i), T = 1; each peer takes the others' answers as given."""
    pairs = [
        mean_divergence(other.detach(), one)
        for one in logits
        for other in logits
        if other is not one
    ]
    others = len(logits) - 1
    return weighted(1 / others, add_up(pairs))


class Peers(Part):
    """The networks that learn beside the student."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        count = pair.options.peers - 1
        self.networks = nn.ModuleList(
            build_like(pair.student, pair.seed + 1 + peer) for peer in range(count)
        )


def _loss(batch: Batch) -> Tensor:
    """The peers' logits join those of everyone."""
    peers = cast(Peers, batch.parts["Peers"])
    batch.all_logits.extend([batch.run_network(peer, batch.images) for peer in peers.networks])
    return mutual_loss(batch.all_logits)


# Peers have nothing to say before labels have taught them.
DML = Method("dml", 1.0, frozenset(), _loss, Peers, labels=1.0, crowd=True, compares="never")
