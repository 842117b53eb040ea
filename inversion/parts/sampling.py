"""How the adversarial student draws from the buffer: δ as prioritised replay, uniformly, or by a
learned policy.

In reinforcement-learning terms (prioritised experience replay, Schaul et al. 2016) a stored image
is a transition, the teacher–student disagreement its TD error, and δ_i(x) = w_{i−1}(x)·KL(p_T ‖
p_S) its priority at the i-th visit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inversion.options import ReplayOptions
from inversion.parts.buffer import ReplayBuffer
from inversion.parts.policy import Policy
from synthesis_kernels.priority import (
    Visited,
    draw,
    draw_chances,
    importance_weights,
    record_visits,
)


def draw_batch(
    buffer: ReplayBuffer,
    count: int,
    options: ReplayOptions,
    progress: float | Tensor,
    generator: torch.Generator,
    policy: Policy | None = None,
    call: int | Tensor = 0,
) -> tuple[Tensor, Tensor]:  # (count,) slots, (count,) importance weights
    """Draw slots the student may train on; β rises from its first value to 1 as `progress` goes
    from 0 to 1.
    """
    allowed = buffer.filled & ~buffer.is_held_out
    if policy is None:
        alpha = options.alpha if options.sampling == "priority" else 0.0
        chances = draw_chances(buffer.priority, alpha, allowed)
    else:
        chances = policy.chances(buffer, call, allowed)
    drawn = draw(chances, count, generator)
    beta = options.beta + (1 - options.beta) * progress
    return drawn, importance_weights(chances, drawn, beta)


def record_visit(buffer: ReplayBuffer, drawn: Tensor, divergence: Tensor, weights: Tensor) -> None:
    """Write δ and the disagreement back after a visit, and keep the weight for the next one."""
    # A slot drawn twice has two views: the larger δ counts, whatever order the device writes in.
    kept = Visited(buffer.priority, buffer.weight, buffer.disagreement, buffer.trend, buffer.visits)
    record_visits(kept, drawn, divergence, weights)
