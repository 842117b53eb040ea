"""`bn_match` for CUDA: one pass over rows of channels each way. Sums are added up in a fixed order,
so results repeat.

What changes from layer to layer (rows, channels, whether there is a ReLU, whether anybody reads the
moments) is an argument and no constant, so that each kernel is compiled once for a type of input;
and once more where channels don't divide by 16.
"""

# ruff: noqa: ANN202, N803 (kernels: constants are in capitals, and Triton reads annotations)
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from synthesis_kernels.triton_forms.rounding import FUSED

Added = tuple[Tensor, Tensor]
"""Another input, and where its sum with the first one goes."""
BLOCK = 2048
"""Elements that a program holds at a time: sixteen a thread, and as many of each sum."""
CHANNELS = 32
"""Of a block."""
PROGRAMS = 1024
"""About one wave on a large GPU. Each walks over several blocks, so there are few partial sums."""
FINISH_PARTS = 128
FINISH_CHANNELS = 16
CHANGING = ["rows", "steps", "start", "width", "parts", "adds", "measures"]


@triton.jit
def _load(rows_ptr, other_ptr, total_ptr, place, mask, adds, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    """What is normalised: the input, or the sum with another, as it is kept."""
    x = tl.load(rows_ptr + place, mask=mask, other=0.0)
    if adds:
        other = tl.load(other_ptr + place, mask=mask, other=0.0)
        x = (x.to(WIDE) + other.to(WIDE)).to(x.dtype)
        tl.store(total_ptr + place, x, mask=mask)
    return x.to(WIDE)


@triton.jit(do_not_specialize=CHANGING)
def _forward_kernel(  # type: ignore[no-untyped-def]
    rows_ptr, other_ptr, total_ptr, y_ptr, scale_ptr, shift_ptr, sums_ptr,
    low, rows, adds, measures, steps, start, width, parts, C,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    group = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    wide = scale_ptr.dtype.element_ty
    scale = tl.load(scale_ptr + channel, mask=real, other=0.0)[None, :]
    shift = tl.load(shift_ptr + channel, mask=real, other=0.0)[None, :]
    # The batch's own first value.
    first = group * rows * C + channel
    centre = tl.load(rows_ptr + first, mask=real, other=0.0).to(wide)
    if adds:
        centre += tl.load(other_ptr + first, mask=real, other=0.0).to(wide)
    total = tl.zeros((BLOCK_R, BLOCK_C), dtype=wide)
    squares = tl.zeros((BLOCK_R, BLOCK_C), dtype=wide)
    for step in range(steps):
        # 64-bit: rows · channels may pass 2³¹.
        row = (program + step * tl.num_programs(0)).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (row < rows)[:, None] & real[None, :]
        place = (group * rows + row)[:, None] * C + channel[None, :]
        x = _load(rows_ptr, other_ptr, total_ptr, place, mask, adds, wide)
        apart = tl.where(mask, x - centre[None, :], tl.zeros_like(x))
        total += apart
        squares += apart * apart
        y = x * scale + shift
        y = tl.where(y < low, tl.zeros_like(y) + low, y)  # unlike a maximum, lets NaN through
        tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=mask)
    if measures:
        # Of a group: the centre, how many parts there are, and each part's two sums.
        head = sums_ptr + group * (2 + 2 * parts) * width + start + channel
        place = head + (2 + 2 * program) * width
        tl.store(place, tl.sum(total, axis=0) / rows, mask=real)
        tl.store(place + width, tl.sum(squares, axis=0) / rows, mask=real)
        if program == 0:
            used = tl.zeros((BLOCK_C,), dtype=wide) + tl.num_programs(0)
            tl.store(head, centre, mask=real)
            tl.store(head + width, used, mask=real)


@triton.jit(do_not_specialize=CHANGING)
def _finish_kernel(  # type: ignore[no-untyped-def]
    sums_ptr, moments_ptr, width, parts, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    group = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < width
    wide = sums_ptr.dtype.element_ty
    head = sums_ptr + group * (2 + 2 * parts) * width + channel
    centre = tl.load(head, mask=real, other=0.0)
    used = tl.load(head + width, mask=real, other=0.0).to(tl.int32)
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=wide)
    squares = tl.zeros((BLOCK_P, BLOCK_C), dtype=wide)
    for first in range(0, tl.max(used, axis=0), BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        mask = (part[:, None] < used[None, :]) & real[None, :]
        place = head[None, :] + ((2 + 2 * part) * width)[:, None]
        total += tl.load(place, mask=mask, other=0.0)
        squares += tl.load(place + width, mask=mask, other=0.0)
    offset = tl.sum(total, axis=0)
    variance = tl.sum(squares, axis=0) - offset * offset
    variance = tl.where(variance < 0, tl.zeros_like(variance), variance)
    out = moments_ptr + group * 2 * width + channel
    tl.store(out, centre + offset, mask=real)
    tl.store(out + width, variance, mask=real)


@triton.jit(do_not_specialize=CHANGING)
def _backward_kernel(  # type: ignore[no-untyped-def]
    rows_ptr, grad_ptr, above_ptr, out_ptr, scale_ptr, shift_ptr, moments_ptr, slopes_ptr,
    low, rows, adds, measures, start, width, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    group = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    wide = scale_ptr.dtype.element_ty
    scale = tl.load(scale_ptr + channel, mask=real, other=0.0)[None, :]
    shift = tl.load(shift_ptr + channel, mask=real, other=0.0)[None, :]
    mask = (row < rows)[:, None] & real[None, :]
    place = (group * rows + row)[:, None] * C + channel[None, :]
    x = tl.load(rows_ptr + place, mask=mask, other=0.0).to(wide)
    out = tl.load(grad_ptr + place, mask=mask, other=0.0).to(wide) * scale
    out = tl.where(x * scale + shift > low, out, tl.zeros_like(out))
    if measures:
        of_layer = group * 2 * width + start + channel
        mean = tl.load(moments_ptr + of_layer, mask=real, other=0.0)[None, :]
        base = tl.load(slopes_ptr + of_layer, mask=real, other=0.0)[None, :] / rows
        slope = tl.load(slopes_ptr + of_layer + width, mask=real, other=0.0)[None, :] * 2 / rows
        out += (x - mean) * slope + base
    if adds:
        out += tl.load(above_ptr + place, mask=mask, other=0.0).to(wide)
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=mask)


def match_forward(
    rows: Tensor,  # (*, C) contiguous
    y: Tensor,  # like rows, written
    scale: Tensor,  # (C,) of the type to compute in, like shift
    shift: Tensor,
    sums: Tensor,  # (groups, 2 + 2·parts, width) written from the channel `start` on
    relu: bool,
    start: int,
    added: Added | None = None,
) -> None:
    """The output, and a layer's sums around each group's first value."""
    groups, lines, width = sums.shape
    place = (sums, 1, start, width, lines // 2 - 1)
    _forward((rows, y, added), (scale, shift), relu, groups, place)


def match_finish(sums: Tensor, moments: Tensor) -> None:  # (groups, 2 + 2·parts, width), written
    """Means, and biased variances, of all layers' channels."""
    groups, lines, width = sums.shape
    with torch.cuda.device_of(sums):
        _finish_kernel[triton.cdiv(width, FINISH_CHANNELS), groups](
            sums, moments, width, lines // 2 - 1,
            BLOCK_P=FINISH_PARTS, BLOCK_C=FINISH_CHANNELS, **FUSED,
        )  # fmt: skip


def match_backward(
    rows: Tensor,  # (*, C) contiguous, like grad
    grad: Tensor,
    out: Tensor,  # like rows, written
    scale: Tensor,  # (C,) of the type to compute in, like shift, moments and slopes
    shift: Tensor,
    moments: Tensor,  # (2, width) or (groups, 2, width)
    slopes: Tensor,  # the loss's gradient by the moments
    relu: bool,
    start: int,
    above: Tensor | None = None,  # like rows: the gradient of the sum that was normalised
) -> None:
    """The gradient of rows: through ReLU and scale, and by way of the moments."""
    width = moments.shape[-1]
    groups = moments.numel() // (2 * width)
    place = (moments, slopes, 1, start, width)
    _backward((rows, grad, above, out), (scale, shift), relu, groups, place)


def apply_forward(
    rows: Tensor,
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    relu: bool,
    added: Added | None = None,
) -> None:
    """The output alone."""
    _forward((rows, y, added), (scale, shift), relu, 1, (scale, 0, 0, 0, 0))


def apply_backward(
    rows: Tensor,
    grad: Tensor,
    out: Tensor,
    scale: Tensor,
    shift: Tensor,
    relu: bool,
    above: Tensor | None = None,
) -> None:
    """The gradient of rows through ReLU and scale."""
    _backward((rows, grad, above, out), (scale, shift), relu, 1, (scale, scale, 0, 0, 0))


def _forward(
    maps: tuple[Tensor, Tensor, Added | None],  # rows, y
    vectors: tuple[Tensor, Tensor],  # scale, shift
    relu: bool,
    groups: int,
    place: tuple[Tensor, int, int, int, int],  # sums, whether there are any, start, width, parts
) -> None:
    rows, y, added = maps
    count, channels, blocks, across = _grid(rows, groups)
    sums, measures, start, width, parts = place
    programs = min(blocks, max(1, parts // across)) if measures else blocks
    with torch.cuda.device_of(rows):
        _forward_kernel[programs, across, groups](
            rows, *(added or (rows, y)), y, *vectors, sums,
            _least(relu), count, int(added is not None), measures, triton.cdiv(blocks, programs),
            start, width, parts, channels, BLOCK_R=BLOCK // CHANNELS, BLOCK_C=CHANNELS, **FUSED,
        )  # fmt: skip


def _backward(
    maps: tuple[Tensor, Tensor, Tensor | None, Tensor],  # rows, grad, above, out
    vectors: tuple[Tensor, Tensor],  # scale, shift
    relu: bool,
    groups: int,
    place: tuple[Tensor, Tensor, int, int, int],  # moments, slopes, whether there are any, …
) -> None:
    rows, grad, above, out = maps
    count, channels, blocks, across = _grid(rows, groups)
    moments, slopes, measures, start, width = place
    with torch.cuda.device_of(rows):
        _backward_kernel[blocks, across, groups](
            rows, grad, grad if above is None else above, out, *vectors, moments, slopes,
            _least(relu), count, int(above is not None), measures, start, width, channels,
            BLOCK_R=BLOCK // CHANNELS, BLOCK_C=CHANNELS, **FUSED,
        )  # fmt: skip


def _least(relu: bool) -> float:
    """What an output is at least."""
    return 0.0 if relu else -math.inf


def _grid(rows: Tensor, groups: int) -> tuple[int, int, int, int]:
    """Rows of a group, channels, and blocks of both."""
    channels = rows.shape[-1]
    count = rows.numel() // channels // groups
    return count, channels, triton.cdiv(count, BLOCK // CHANNELS), triton.cdiv(channels, CHANNELS)
