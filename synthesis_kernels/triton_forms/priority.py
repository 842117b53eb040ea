"""The race of `draw_distinct` for CUDA: every sample's waiting time in one pass."""

# ruff: noqa: ANN202, N803 (kernels: constants are in capitals, and Triton reads annotations)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

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


@torch.library.custom_op("echoset::triton_race_keys", mutates_args=())
def race_keys(chances: Tensor, luck: Tensor) -> Tensor:  # (N,), (N,) in [0, 1) -> (N,)
    """−ln(1 − u)/P, and infinity where P = 0."""
    out = _like_keys(chances, luck)
    grid = (triton.cdiv(len(out), BLOCK),)
    with torch.cuda.device_of(out):
        _race_kernel[grid](chances.contiguous(), luck.contiguous(), out, len(out), BLOCK=BLOCK)
    return out


@race_keys.register_fake
def _(chances: Tensor, luck: Tensor) -> Tensor:
    return _like_keys(chances, luck)


def _like_keys(chances: Tensor, luck: Tensor) -> Tensor:
    dtype = torch.promote_types(chances.dtype, luck.dtype)
    return torch.empty(len(chances), dtype=dtype, device=chances.device)
