"""`bn_train` for CUDA: two kernels each way over rows of channels, the same two in both directions.

The first leaves sums of its own blocks, and every program of the second adds all of them up for its
channels: no third kernel, and a fixed order, so results repeat.

What changes from layer to layer (rows, channels, what is added) and the direction are arguments and
no constants, so that each kernel is compiled once for a type of input; and once more where channels
don't divide by 16. Narrow layers lie several rows side by side, so that they fill a block, too.
"""

# ruff: noqa: ANN202, N803 (kernels: constants are in capitals, and Triton reads annotations
# and conditions)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from synthesis_kernels.bn_train import empty_as
from synthesis_kernels.triton_forms.rounding import FUSED

BLOCK = 4096
"""Elements that a program holds at a time, so that few programs keep the memory busy."""
COLUMNS = 32
"""Of a block."""
PARTS = 64
"""Sums of programs that are read at a time."""
PROGRAMS = 256
"""Of the first kernel: as many pairs of sums a channel for the second one to read."""
WARPS = 8
CHANGING = [
    "rows", "C", "beside", "steps", "parts", "back", "branches", "adds", "counts", "passes"
]  # fmt: skip


@triton.jit
def _behind(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    grad, output, slope
):
    """The gradient before the LeakyReLU that gave an output of this sign."""
    return tl.where(output > 0, grad, grad * slope)


@triton.jit
def _summed(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    rows_ptr, branch_ptr, place, mask, branches, WIDE: tl.constexpr
):  # fmt: skip
    """Rows, or their sum with a branch, rounded as it is kept."""
    x = tl.load(rows_ptr + place, mask=mask, other=0.0).to(WIDE)
    if branches:
        x += tl.load(branch_ptr + place, mask=mask, other=0.0).to(WIDE)
        x = x.to(rows_ptr.dtype.element_ty).to(WIDE)
    return x


@triton.jit(do_not_specialize=CHANGING)
def _sums_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    rows_ptr, branch_ptr, total_ptr, grad_ptr, y_ptr, sums_ptr,
    mean_ptr, invstd_ptr, weight_ptr, bias_ptr,
    rows, C, width, beside, steps, slope, back, branches, adds,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Forward: of what lies around the first row, and of its squares. Backward: of the gradient
    behind the LeakyReLU, and of its products with what lies around the mean.
    """
    program = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = column < width
    channel = column % C
    if back:
        centre = tl.load(mean_ptr + channel, mask=real, other=0.0)[None, :]
        scale = tl.load(invstd_ptr + channel, mask=real, other=0.0)[None, :]
    else:
        centre = _summed(rows_ptr, branch_ptr, channel, real, branches, WIDE)[None, :]
        scale = centre
    scale *= tl.load(weight_ptr + channel, mask=real, other=0.0)[None, :]
    shift = tl.load(bias_ptr + channel, mask=real, other=0.0)[None, :]
    first = tl.zeros((BLOCK_R, BLOCK_C), dtype=WIDE)
    second = tl.zeros((BLOCK_R, BLOCK_C), dtype=WIDE)
    for step in range(steps):
        # 64-bit: rows · channels may pass 2³¹.
        line = (program + step * tl.num_programs(0)).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        place = line[:, None] * width + column[None, :]
        mask = (place < rows.to(tl.int64) * C) & real[None, :]
        x = _summed(rows_ptr, branch_ptr, place, mask, branches, WIDE)
        if branches:
            tl.store(total_ptr + place, x.to(total_ptr.dtype.element_ty), mask=mask)
        apart = tl.where(mask, x - centre, tl.zeros_like(x))
        one = apart
        if back:
            output = apart * scale + shift
            if adds:
                output = tl.load(y_ptr + place, mask=mask, other=0.0).to(WIDE)
            grad = tl.load(grad_ptr + place, mask=mask, other=0.0).to(WIDE)
            one = _behind(grad, output, slope)
        first += one
        second += one * apart
    place = program * 2 * width + column
    tl.store(sums_ptr + place, tl.sum(first, axis=0), mask=real)
    tl.store(sums_ptr + place + width, tl.sum(second, axis=0), mask=real)


@triton.jit
def _add_up(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    sums_ptr, channel, real, parts, C, beside,
    WIDE: tl.constexpr, PARTS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Both sums of the first kernel's programs, by channel."""
    first = tl.zeros((PARTS, BLOCK_C), dtype=WIDE)
    second = tl.zeros((PARTS, BLOCK_C), dtype=WIDE)
    for start in range(0, parts * beside, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (part < parts * beside)[:, None] & real[None, :]
        place = ((part // beside) * 2 * beside + part % beside)[:, None] * C + channel[None, :]
        first += tl.load(sums_ptr + place, mask=mask, other=0.0)
        second += tl.load(sums_ptr + place + C * beside, mask=mask, other=0.0)
    return tl.sum(first, axis=0), tl.sum(second, axis=0)


@triton.jit(do_not_specialize=CHANGING)
def _write_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    rows_ptr, residual_ptr, grad_ptr, y_ptr, passed_ptr, out_ptr, to_residual_ptr, sums_ptr,
    mean_ptr, invstd_ptr, weight_ptr, bias_ptr, to_weight_ptr, to_bias_ptr,
    running_mean_ptr, running_var_ptr, batches_ptr,
    rows, C, width, beside, steps, parts, momentum, eps, slope, back, adds, counts, passes,
    WIDE: tl.constexpr, PARTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Forward: the output; what is kept moves. Backward: the gradients."""
    program = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = column < width
    # Of the columns of a channel, the first writes what there is once.
    writes = column < tl.where(program == 0, C, 0)
    channel = column % C
    first, second = _add_up(sums_ptr, channel, real, parts, C, beside, WIDE, PARTS, BLOCK_C)
    count = rows.to(WIDE)
    weight = tl.load(weight_ptr + channel, mask=real, other=0.0)
    shift = tl.load(bias_ptr + channel, mask=real, other=0.0)[None, :]
    if back:
        mean = tl.load(mean_ptr + channel, mask=real, other=0.0)
        invstd = tl.load(invstd_ptr + channel, mask=real, other=0.0)
        to_weight = second * invstd
        tl.store(to_weight_ptr + channel, to_weight, mask=writes)
        tl.store(to_bias_ptr + channel, first, mask=writes)
        tilt = weight * invstd * invstd * to_weight / count
        base = weight * invstd * first / count
    else:
        offset = first / count
        variance = second / count - offset * offset
        variance = tl.where(variance < 0, tl.zeros_like(variance), variance)
        mean = tl.load(rows_ptr + channel, mask=real, other=0.0).to(WIDE) + offset
        invstd = 1 / tl.sqrt(variance + eps)
        tl.store(mean_ptr + channel, mean, mask=writes)
        tl.store(invstd_ptr + channel, invstd, mask=writes)
        kept = tl.load(running_mean_ptr + channel, mask=writes, other=0.0)
        tl.store(running_mean_ptr + channel, kept + momentum * (mean - kept), mask=writes)
        kept = tl.load(running_var_ptr + channel, mask=writes, other=0.0)
        unbiased = variance * (count / (count - 1))
        tl.store(running_var_ptr + channel, kept + momentum * (unbiased - kept), mask=writes)
        if (counts != 0) & (program == 0) & (tl.program_id(1) == 0):
            tl.store(batches_ptr, tl.load(batches_ptr) + 1)
        tilt = offset
        base = offset
    mean = mean[None, :]
    scale = (weight * invstd)[None, :]
    tilt = tilt[None, :]
    base = base[None, :]
    for step in range(steps):
        line = (program + step * tl.num_programs(0)).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        place = line[:, None] * width + column[None, :]
        mask = (place < rows.to(tl.int64) * C) & real[None, :]
        apart = tl.load(rows_ptr + place, mask=mask, other=0.0).to(WIDE) - mean
        out = apart * scale + shift
        if back:
            if adds:
                out = tl.load(y_ptr + place, mask=mask, other=0.0).to(WIDE)
            grad = tl.load(grad_ptr + place, mask=mask, other=0.0).to(WIDE)
            grad = _behind(grad, out, slope)
            out = grad * scale - (apart * tilt + base)
            if passes:
                out += tl.load(passed_ptr + place, mask=mask, other=0.0).to(WIDE)
            if adds:
                kept = grad.to(to_residual_ptr.dtype.element_ty)
                tl.store(to_residual_ptr + place, kept, mask=mask)
        else:
            if adds:
                out += tl.load(residual_ptr + place, mask=mask, other=0.0).to(WIDE)
            # A slope of 0 shall not make NaN of what is infinite.
            out = tl.where(out < 0, tl.where(slope == 0, tl.zeros_like(out), out * slope), out)
        tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=mask)


def forward(
    maps: tuple[Tensor, Tensor | None, Tensor | None],  # (*, C) each: rows, branch, residual
    weight: Tensor,  # (C,) float32 or better, like all that is kept but the count
    bias: Tensor,
    kept: tuple[Tensor, Tensor, Tensor | None],  # running mean, running variance, batches
    numbers: tuple[float, float, float],  # momentum, eps, slope
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(y, the sum with the branch, mean, 1/√(variance + eps)); what is kept moves."""
    rows, branch, residual = maps
    running_mean, running_var, batches = kept
    y = empty_as(rows)
    total = None if branch is None else empty_as(rows)
    vectors = (empty_as(weight), empty_as(weight), weight, bias)
    seen = rows if total is None else total
    grid, sizes, blocks = _blocks(rows)
    sums = _room_for_sums(grid, sizes, weight)
    # What this direction has no use for is never looked at.
    with torch.cuda.device_of(rows):
        _sums_kernel[grid](
            rows, _or(branch, rows), seen, rows, rows, sums, *vectors,
            *sizes, numbers[2], 0, int(branch is not None), 0, **blocks,
        )  # fmt: skip
        _write_kernel[grid](
            seen, _or(residual, rows), rows, rows, rows, y, y, sums, *vectors, weight, bias,
            running_mean, running_var, _or(batches, _as_counts(sums)),
            *sizes, grid[0], *numbers, 0, int(residual is not None), int(batches is not None), 0,
            PARTS=PARTS, **blocks,
        )  # fmt: skip
    return y, total, *vectors[:2]


def backward(
    # (*, C) each: rows; grad; the output, where there was a residual; and what the rows' gradient
    # has besides, where there was a branch
    maps: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    vectors: tuple[Tensor, ...],  # (C,) each: mean, invstd, weight, bias
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of rows, weight, bias and residual."""
    rows, grad, y, passed = maps
    to_x = empty_as(rows)
    to_residual = None if y is None else empty_as(rows)
    weight = vectors[2]
    to_weight = empty_as(weight)
    to_bias = empty_as(weight)
    adds = int(y is not None)
    grid, sizes, blocks = _blocks(rows)
    sums = _room_for_sums(grid, sizes, weight)
    with torch.cuda.device_of(rows):
        _sums_kernel[grid](
            rows, rows, rows, grad, _or(y, rows), sums, *vectors,
            *sizes, slope, 1, 0, adds, **blocks,
        )  # fmt: skip
        _write_kernel[grid](
            rows, rows, grad, _or(y, rows), _or(passed, rows), to_x, _or(to_residual, to_x), sums,
            *vectors, to_weight, to_bias, weight, weight, _as_counts(sums),
            *sizes, grid[0], 0.0, 0.0, slope, 1, adds, 0, int(passed is not None),
            PARTS=PARTS, **blocks,
        )  # fmt: skip
    return to_x, to_weight, to_bias, to_residual


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    return other if tensor is None else tensor


def _as_counts(sums: Tensor) -> Tensor:
    """Memory of the type that batches are counted in, where nobody counts them."""
    return sums.view(-1).view(torch.int64)


def _room_for_sums(grid: tuple[int, int], sizes: tuple[int, ...], like: Tensor) -> Tensor:
    width = sizes[2]
    return torch.empty(grid[0], 2, width, dtype=like.dtype, device=like.device)


def _blocks(rows: Tensor) -> tuple[tuple[int, int], tuple[int, ...], dict[str, object]]:
    """Programs along rows and columns; rows, channels, columns, rows that lie side by side, and the
    blocks that a program walks over; and what a block is.
    """
    channels = rows.shape[-1]
    count = rows.numel() // channels
    beside = COLUMNS // channels if COLUMNS % channels == 0 else 1
    block_rows = BLOCK // COLUMNS
    across = triton.cdiv(channels * beside, COLUMNS)
    lines = triton.cdiv(count, beside)
    programs = min(triton.cdiv(lines, block_rows), max(1, PROGRAMS // across))
    steps = triton.cdiv(lines, block_rows * programs)
    wide = tl.float64 if rows.dtype is torch.float64 else tl.float32
    blocks = {"WIDE": wide, "BLOCK_R": block_rows, "BLOCK_C": COLUMNS, "num_warps": WARPS, **FUSED}
    return (programs, across), (count, channels, channels * beside, beside, steps), blocks
