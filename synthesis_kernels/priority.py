"""Draws from a buffer by priority, the weights that undo their bias, and what a visit leaves
(prioritised replay, Schaul et al. 2016).

All on the device, O(N), and without waiting for it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form

LEAST = 1e-4
"""Below this a disagreement is none, so that its change is finite."""


class Visited(NamedTuple):
    """What a buffer keeps of its visits: a number for each of N slots, float32 and contiguous."""

    priority: Tensor
    """δ: the last importance weight times the last disagreement."""
    weight: Tensor
    """The importance weight of the last visit."""
    disagreement: Tensor
    """The last one found."""
    trend: Tensor
    """The change of its logarithm."""
    visits: Tensor
    """Their number."""


def draw_chances(
    priority: Tensor,  # (N,)
    exponent: float,
    allowed: Tensor | None = None,  # (N,) bool
    floor: float = 1e-3,
) -> Tensor:  # (N,) sums to 1
    """P(i) = (|δ_i| + ε)^α / Σ (|δ| + ε)^α over the allowed samples; α = 0 is uniform (eq. 1)."""
    weight = (priority.abs() + floor) ** exponent
    if allowed is not None:
        weight = weight * allowed
    return weight / weight.sum()


def draw(chances: Tensor, count: int, generator: torch.Generator) -> Tensor:  # (count,) int64
    """Draw indices with replacement, each with its chance."""
    # CUDA's running sums differ from run to run by roundings; of doubles by none that matter.
    if chances.is_cuda:
        chances = chances.double()
    return torch.multinomial(chances, count, replacement=True, generator=generator)


def race_keys_reference(chances: Tensor, luck: Tensor) -> Tensor:  # (N,), (N,) in [0, 1) -> (N,)
    """Definition: −ln(1 − u)/P, an exponential waiting time; the smallest of N is i with chance
    P(i). P = 0 waits forever.
    """
    return torch.where(chances > 0, -torch.log1p(-luck) / chances, torch.inf)


def draw_distinct(
    chances: Tensor,  # (N,)
    count: int,
    generator: torch.Generator,
) -> Tensor:  # (count,) int64
    """Draw different indices: successive draws without replacement are the first arrivals of a
    race.

    Where fewer than `count` can be drawn, the rest are indices of chance zero.
    """
    return _race(chances, generator).topk(count, largest=False).indices


def draw_by_class(
    chances: Tensor,  # (N,)
    labels: Tensor,  # (N,) int64
    quotas: Tensor,  # (K,) int64
    total: int,
    generator: torch.Generator,
) -> Tensor:  # (total,) int64
    """Different indices, quotas[c] of class c, by their chances within it; `total` is the quotas'
    sum, which the device holds.

    A class with too few candidates leaves its places to the earliest arrivals of the others.
    """
    arrival = _race(chances, generator).argsort(stable=True)
    count = len(labels)
    places = torch.arange(count, device=labels.device)
    # By class, and by arrival within it.
    order = arrival[labels[arrival].argsort(stable=True)]
    sorted_labels = labels[order]
    classes = torch.arange(len(quotas), device=labels.device)
    first_of_class = torch.searchsorted(sorted_labels, classes)
    place_in_class = places - first_of_class[sorted_labels]
    within_quota = (place_in_class < quotas[sorted_labels]) & (chances[order] > 0)
    impossible = chances[order] <= 0
    # Chosen first, then everybody else who can be drawn, then those who can't: each by arrival.
    turn = torch.empty_like(arrival).scatter_(0, arrival, places)
    late = turn[order] + count * (~within_quota).long() + count * impossible.long()
    return order[late.argsort()[:total]]


def importance_weights(
    chances: Tensor,  # (N,)
    drawn: Tensor,  # (count,) int64
    beta: float | Tensor,
) -> Tensor:  # (count,), largest is 1
    """w(i) = (N·P(i))^−β / max w, of which N cancels out: undoes the bias of uneven draws, all of
    it at β = 1.
    """
    chance = chances[drawn]
    # What has no chance and was drawn all the same (`draw_distinct`, for want of others) counts
    # nothing.
    weight = torch.where(chance > 0, chance**-beta, 0)
    return weight / weight.max()


def record_visits_reference(
    kept: Visited,
    drawn: Tensor,  # (B,) int64 slots
    apart: Tensor,  # (B,) disagreement found
    weights: Tensor,  # (B,) importance weights, alike where a slot was drawn twice
) -> None:
    """Definition: δ and the disagreement are written back, and the weight is kept for the next
    visit. A slot drawn twice counts once, with the larger disagreement.
    """
    before = kept.disagreement.clone()
    kept.disagreement.scatter_reduce_(0, drawn, apart, "amax", include_self=False)
    change = kept.disagreement.clamp_min(LEAST).log() - before.clamp_min(LEAST).log()
    visited = torch.zeros_like(kept.visits, dtype=torch.bool).index_fill_(0, drawn, True)
    # Before the first visit nothing was known that could have changed.
    change = torch.where(kept.visits > 0, change, 0)
    kept.trend.copy_(torch.where(visited, change, kept.trend))
    kept.visits.add_(visited)
    product = kept.weight[drawn] * apart
    kept.priority.scatter_reduce_(0, drawn, product, "amax", include_self=False)
    kept.weight[drawn] = weights


def record_visits(kept: Visited, drawn: Tensor, apart: Tensor, weights: Tensor) -> None:
    """The same in one pass over what was drawn."""
    form = pick_form(kept.priority)
    if form == "reference":
        record_visits_reference(kept, drawn, apart, weights)
        return
    drawn = drawn.long().contiguous()
    found = (drawn, *(each.float().expand_as(drawn).contiguous() for each in (apart, weights)))
    if form == "triton":
        from synthesis_kernels.triton_forms import priority

        priority.record_visits(kept, *found)
        return
    sizes = (len(drawn), len(kept.priority))
    if native.call("record_visits", torch.float32, *found, *sizes, *kept):
        raise IndexError(f"visits of slots {drawn.tolist()} of {len(kept.priority)}")


def _race(chances: Tensor, generator: torch.Generator) -> Tensor:
    luck = torch.rand(len(chances), generator=generator, device=chances.device)
    if pick_form(chances, has=("reference", "triton")) == "triton":
        from synthesis_kernels.triton_forms.priority import race_keys

        return race_keys(chances, luck)
    return race_keys_reference(chances, luck)
