"""`priority` for CUDA: the race of `draw_distinct`, every sample's waiting time in one pass; and
what a visit leaves.
"""

# ruff: noqa: ANN202, N803 (kernels: constants are in capitals, and Triton reads annotations)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from synthesis_kernels.priority import LEAST, Visited
from synthesis_kernels.triton_forms.rounding import FUSED

BLOCK = 1024


@triton.jit
def _race_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    chances_ptr, luck_ptr, out_ptr, count, BLOCK: tl.constexpr
):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    chance = tl.load(chances_ptr + place, mask=mask, other=0.0).to(tl.float64)
    luck = tl.load(luck_ptr + place, mask=mask, other=0.0).to(tl.float64)
    possible = chance > 0
    # In float64 1 − u is exact, so a plain logarithm keeps the small times that float32 would need
    # a log1p for.
    divisor = tl.where(possible, chance, tl.full(chance.shape, 1.0, tl.float64))
    wait = (0.0 - tl.log(1.0 - luck)) / divisor
    wait = tl.where(possible, wait, tl.full(chance.shape, float("inf"), tl.float64))
    tl.store(out_ptr + place, wait.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _record_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    drawn_ptr, apart_ptr, weights_ptr, priority_ptr, weight_ptr, disagreement_ptr, trend_ptr,
    visits_ptr, count, slots, LEAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for each visit; of several to one slot, the first does the work."""
    b = tl.program_id(0)
    slot = tl.load(drawn_ptr + b)
    other = tl.arange(0, BLOCK)
    same = tl.load(drawn_ptr + other, mask=other < count, other=-1) == slot
    first = tl.min(tl.where(same, other, BLOCK))
    if (first == b) & (slot >= 0) & (slot < slots):
        apart = tl.load(apart_ptr + other, mask=same, other=float("-inf"))
        most = tl.max(apart)
        last = tl.max(tl.where(same, other, -1))
        before = tl.load(disagreement_ptr + slot)
        change = tl.log(tl.maximum(most, LEAST)) - tl.log(tl.maximum(before, LEAST))
        visits = tl.load(visits_ptr + slot)
        weight = tl.load(weight_ptr + slot)
        tl.store(trend_ptr + slot, tl.where(visits > 0, change, 0.0))
        tl.store(disagreement_ptr + slot, most)
        tl.store(priority_ptr + slot, weight * most)
        tl.store(weight_ptr + slot, tl.load(weights_ptr + last))
        tl.store(visits_ptr + slot, visits + 1)


def record_visits(kept: Visited, drawn: Tensor, apart: Tensor, weights: Tensor) -> None:
    """Write what a visit leaves, in one launch; slots that there aren't are passed over."""
    count = len(drawn)
    with torch.cuda.device_of(drawn):
        _record_kernel[(count,)](
            drawn, apart, weights, *kept, count, len(kept.priority),
            LEAST=LEAST, BLOCK=triton.next_power_of_2(count), **FUSED,
        )  # fmt: skip


def race_keys(chances: Tensor, luck: Tensor) -> Tensor:  # (N,), (N,) in [0, 1) -> (N,)
    """−ln(1 − u)/P, and infinity where P = 0."""
    dtype = torch.promote_types(chances.dtype, luck.dtype)
    out = torch.empty(len(chances), dtype=dtype, device=chances.device)
    grid = (triton.cdiv(len(out), BLOCK),)
    with torch.cuda.device_of(out):
        _race_kernel[grid](
            chances.contiguous(), luck.contiguous(), out, len(out), BLOCK=BLOCK, **FUSED
        )
    return out
