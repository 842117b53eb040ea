"""`counter` for CUDA: a kernel draws its numbers where it uses them; or all are drawn at once."""

# ruff: noqa: ANN201, ANN202, N803 (kernels: constants are in capitals, and Triton reads annotations)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from synthesis_kernels import counter
from synthesis_kernels.triton_forms.rounding import FUSED

FIRST = tl.constexpr(counter.MULTIPLIERS[0])
SECOND = tl.constexpr(counter.MULTIPLIERS[1])
BLOCK = 1024
LANE_STEP = tl.constexpr(counter.LANE_STEP)


@triton.jit
def _mix(x):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    x = (x ^ (x >> 16)) * FIRST
    x = (x ^ (x >> 15)) * SECOND
    return x ^ (x >> 16)


@triton.jit
def _unit(x):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    return (_mix(x) >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def stream(index, view, place):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    """What the numbers of (index, view) follow from; `place` is the seed's."""
    key = _mix(index.to(tl.uint32) + place.to(tl.uint32))
    return _mix(key + view.to(tl.uint32))


@triton.jit
def uniform(key, LANE: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    """A stream's number in this lane, in [0, 1)."""
    step: tl.constexpr = ((LANE + 1) * LANE_STEP) & 0xFFFFFFFF
    return _unit(key + step)


@triton.jit(do_not_specialize=["place"])
def _uniforms_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    index_ptr, view_ptr, out_ptr, total, count, place, view_step, BLOCK: tl.constexpr
):
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    lane = number // count
    b = number % count
    key = stream(tl.load(index_ptr + b), tl.load(view_ptr + b * view_step), place)
    drawn = _unit(key + (lane + 1).to(tl.uint32) * LANE_STEP)
    tl.store(out_ptr + number, drawn, mask=number < total)


def draw_uniforms(
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64, or ()
    out: Tensor,  # (lanes, B) float32
    seed: int,
) -> None:
    """Write the numbers into `out`, in one launch."""
    place = signed(counter.start_place(seed))
    grid = (triton.cdiv(out.numel(), BLOCK),)
    with torch.cuda.device_of(out):
        _uniforms_kernel[grid](
            index, view, out, out.numel(), len(index), place, view.ndim, BLOCK=BLOCK, **FUSED
        )


def signed(place: int) -> int:
    """A 32-bit place as the integer that Triton takes for one, whatever its size."""
    return place - (1 << 32) if place >= 1 << 31 else place
