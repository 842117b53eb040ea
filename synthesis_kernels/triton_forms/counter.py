"""`counter` for CUDA: a kernel draws its numbers where it uses them."""

# ruff: noqa: ANN201, ANN202, N803 (kernels: constants are in capitals, and Triton reads annotations)
from __future__ import annotations

import triton
import triton.language as tl

from synthesis_kernels import counter

FIRST = tl.constexpr(counter.MULTIPLIERS[0])
SECOND = tl.constexpr(counter.MULTIPLIERS[1])
LANE_STEP = tl.constexpr(counter.LANE_STEP)


@triton.jit
def _mix(x):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    x = (x ^ (x >> 16)) * FIRST
    x = (x ^ (x >> 15)) * SECOND
    return x ^ (x >> 16)


@triton.jit
def stream(index, view, place):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    """What the numbers of (index, view) follow from; `place` is the seed's."""
    key = _mix(index.to(tl.uint32) + place.to(tl.uint32))
    return _mix(key + view.to(tl.uint32))


@triton.jit
def uniform(key, LANE: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    """A stream's number in this lane, in [0, 1)."""
    step: tl.constexpr = ((LANE + 1) * LANE_STEP) & 0xFFFFFFFF
    return (_mix(key + step) >> 8).to(tl.float32) * 5.9604644775390625e-08


def signed(place: int) -> int:
    """A 32-bit place as the integer that Triton takes for one, whatever its size."""
    return place - (1 << 32) if place >= 1 << 31 else place
