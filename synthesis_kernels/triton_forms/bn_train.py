"""`bn_train` for CUDA: two kernels each way over rows of channels.

The first of each pair leaves sums of its own blocks, and every program of the second adds all of
them up for its channels: no third kernel, and a fixed order, so results repeat.

What changes from layer to layer (rows, channels, what is added) is an argument and no constant, so
that each kernel is compiled once for a type of input; and once more for narrow layers.
"""

# ruff: noqa: ANN202, N803, SIM102 (kernels: constants are in capitals, and Triton reads annotations
# and conditions)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from synthesis_kernels.bn_train import empty_as

BLOCK = 8192
"""Elements that a program holds at a time, so that few programs keep the memory busy."""
CHANNELS = 16, 32
"""Of a block: in narrow layers, and in all others."""
PARTS = 64
"""Programs whose sums are read at a time."""
PROGRAMS = 256
"""Of the first kernel: as many pairs of sums a channel for the second one to read."""
WARPS = 8
CHANGING = ["rows", "steps", "parts", "branches", "adds", "counts", "passes"]


@triton.jit
def _behind(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    grad, output, slope
):  # fmt: skip
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
def _moments_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    rows_ptr, branch_ptr, total_ptr, sums_ptr, rows, steps, C, branches, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    centre = _summed(rows_ptr, branch_ptr, channel, real, branches, WIDE)[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_C), dtype=WIDE)
    squares = tl.zeros((BLOCK_R, BLOCK_C), dtype=WIDE)
    for step in range(steps):
        # 64-bit: rows · channels may pass 2³¹.
        row = (program + step * tl.num_programs(0)).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (row < rows)[:, None] & real[None, :]
        place = row[:, None] * C + channel[None, :]
        x = _summed(rows_ptr, branch_ptr, place, mask, branches, WIDE)
        if branches:
            tl.store(total_ptr + place, x.to(total_ptr.dtype.element_ty), mask=mask)
        apart = tl.where(mask, x - centre, tl.zeros_like(x))
        total += apart
        squares += apart * apart
    place = program * 2 * C + channel
    tl.store(sums_ptr + place, tl.sum(total, axis=0), mask=real)
    tl.store(sums_ptr + place + C, tl.sum(squares, axis=0), mask=real)


@triton.jit
def _add_up(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    sums_ptr, channel, parts, C, WIDE: tl.constexpr, PARTS: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Both sums of the first kernel's programs, by channel."""
    total = tl.zeros((PARTS, BLOCK_C), dtype=WIDE)
    other = tl.zeros((PARTS, BLOCK_C), dtype=WIDE)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & (channel < C)[None, :]
        place = part[:, None] * 2 * C + channel[None, :]
        total += tl.load(sums_ptr + place, mask=mask, other=0.0)
        other += tl.load(sums_ptr + place + C, mask=mask, other=0.0)
    return tl.sum(total, axis=0), tl.sum(other, axis=0)


@triton.jit(do_not_specialize=CHANGING)
def _apply_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    rows_ptr, residual_ptr, y_ptr, sums_ptr, weight_ptr, bias_ptr, mean_ptr, invstd_ptr,
    running_mean_ptr, running_var_ptr, batches_ptr, rows, steps, parts, momentum, eps, slope,
    C, adds, counts, WIDE: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    total, squares = _add_up(sums_ptr, channel, parts, C, WIDE, PARTS, BLOCK_C)
    count = rows.to(WIDE)
    offset = total / count
    variance = squares / count - offset * offset
    variance = tl.where(variance < 0, tl.zeros_like(variance), variance)
    mean = tl.load(rows_ptr + channel, mask=real, other=0.0).to(WIDE) + offset
    invstd = 1 / tl.sqrt(variance + eps)
    if program == 0:
        tl.store(mean_ptr + channel, mean, mask=real)
        tl.store(invstd_ptr + channel, invstd, mask=real)
        kept = tl.load(running_mean_ptr + channel, mask=real, other=0.0)
        tl.store(running_mean_ptr + channel, kept + momentum * (mean - kept), mask=real)
        kept = tl.load(running_var_ptr + channel, mask=real, other=0.0)
        unbiased = variance * (count / (count - 1))
        tl.store(running_var_ptr + channel, kept + momentum * (unbiased - kept), mask=real)
        if counts:
            if tl.program_id(1) == 0:
                tl.store(batches_ptr, tl.load(batches_ptr) + 1)
    scale = (tl.load(weight_ptr + channel, mask=real, other=0.0) * invstd)[None, :]
    shift = tl.load(bias_ptr + channel, mask=real, other=0.0)[None, :]
    for step in range(steps):
        row = (program + step * tl.num_programs(0)).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (row < rows)[:, None] & real[None, :]
        place = row[:, None] * C + channel[None, :]
        y = (tl.load(rows_ptr + place, mask=mask, other=0.0).to(WIDE) - mean[None, :]) * scale
        y += shift
        if adds:
            y += tl.load(residual_ptr + place, mask=mask, other=0.0).to(WIDE)
        # A slope of 0 shall not make NaN of what is infinite.
        y = tl.where(y < 0, tl.where(slope == 0, tl.zeros_like(y), y * slope), y)
        tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=CHANGING)
def _sums_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    rows_ptr, grad_ptr, y_ptr, sums_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr,
    rows, steps, slope, C, adds, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    mean = tl.load(mean_ptr + channel, mask=real, other=0.0)[None, :]
    scale = tl.load(weight_ptr + channel, mask=real, other=0.0)[None, :]
    scale *= tl.load(invstd_ptr + channel, mask=real, other=0.0)[None, :]
    shift = tl.load(bias_ptr + channel, mask=real, other=0.0)[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_C), dtype=WIDE)
    products = tl.zeros((BLOCK_R, BLOCK_C), dtype=WIDE)
    for step in range(steps):
        row = (program + step * tl.num_programs(0)).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (row < rows)[:, None] & real[None, :]
        place = row[:, None] * C + channel[None, :]
        apart = tl.load(rows_ptr + place, mask=mask, other=0.0).to(WIDE) - mean
        grad = tl.load(grad_ptr + place, mask=mask, other=0.0).to(WIDE)
        if adds:
            output = tl.load(y_ptr + place, mask=mask, other=0.0).to(WIDE)
        else:
            output = apart * scale + shift
        grad = _behind(grad, output, slope)
        total += grad
        products += grad * apart
    place = program * 2 * C + channel
    tl.store(sums_ptr + place, tl.sum(total, axis=0), mask=real)
    tl.store(sums_ptr + place + C, tl.sum(products, axis=0), mask=real)


@triton.jit(do_not_specialize=CHANGING)
def _gradient_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    rows_ptr, grad_ptr, y_ptr, passed_ptr, to_x_ptr, to_residual_ptr, sums_ptr, mean_ptr,
    invstd_ptr, weight_ptr, bias_ptr, to_weight_ptr, to_bias_ptr, rows, steps, parts, slope,
    C, adds, passes, WIDE: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    total, products = _add_up(sums_ptr, channel, parts, C, WIDE, PARTS, BLOCK_C)
    invstd = tl.load(invstd_ptr + channel, mask=real, other=0.0)
    to_weight = products * invstd
    if program == 0:
        tl.store(to_weight_ptr + channel, to_weight, mask=real)
        tl.store(to_bias_ptr + channel, total, mask=real)
    count = rows.to(WIDE)
    scale = tl.load(weight_ptr + channel, mask=real, other=0.0) * invstd
    tilt = (scale * invstd * to_weight / count)[None, :]
    base = (scale * total / count)[None, :]
    scale = scale[None, :]
    mean = tl.load(mean_ptr + channel, mask=real, other=0.0)[None, :]
    shift = tl.load(bias_ptr + channel, mask=real, other=0.0)[None, :]
    for step in range(steps):
        row = (program + step * tl.num_programs(0)).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (row < rows)[:, None] & real[None, :]
        place = row[:, None] * C + channel[None, :]
        apart = tl.load(rows_ptr + place, mask=mask, other=0.0).to(WIDE) - mean
        grad = tl.load(grad_ptr + place, mask=mask, other=0.0).to(WIDE)
        if adds:
            output = tl.load(y_ptr + place, mask=mask, other=0.0).to(WIDE)
        else:
            output = apart * scale + shift
        grad = _behind(grad, output, slope)
        out = grad * scale - (apart * tilt + base)
        if passes:
            out += tl.load(passed_ptr + place, mask=mask, other=0.0).to(WIDE)
        tl.store(to_x_ptr + place, out.to(to_x_ptr.dtype.element_ty), mask=mask)
        if adds:
            kept = grad.to(to_residual_ptr.dtype.element_ty)
            tl.store(to_residual_ptr + place, kept, mask=mask)


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
    grid, steps, blocks = _blocks(rows)
    channels = rows.shape[-1]
    count = rows.numel() // channels
    y = empty_as(rows)
    total = None if branch is None else empty_as(rows)
    mean = empty_as(weight)
    invstd = empty_as(weight)
    sums = torch.empty(grid[0], 2, len(weight), dtype=weight.dtype, device=weight.device)
    moved = (running_mean, running_var, running_mean if batches is None else batches)
    seen = rows if total is None else total
    with torch.cuda.device_of(rows):
        _moments_kernel[grid](
            rows, rows if branch is None else branch, seen, sums, count, steps,
            channels, int(branch is not None), **blocks,
        )  # fmt: skip
        _apply_kernel[grid](
            seen, rows if residual is None else residual, y, sums, weight, bias, mean, invstd,
            *moved, count, steps, grid[0], *numbers,
            channels, int(residual is not None), int(batches is not None), PARTS=PARTS, **blocks,
        )  # fmt: skip
    return y, total, mean, invstd


def backward(
    # (*, C) each: rows; grad; the output, where there was a residual; and what the rows' gradient
    # has besides, where there was a branch
    maps: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    vectors: tuple[Tensor, ...],  # (C,) each: mean, invstd, weight, bias
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of rows, weight, bias and residual."""
    rows, grad, y, passed = maps
    grid, steps, blocks = _blocks(rows)
    channels = rows.shape[-1]
    count = rows.numel() // channels
    to_x = empty_as(rows)
    to_residual = None if y is None else empty_as(rows)
    to_weight = empty_as(vectors[2])
    to_bias = empty_as(vectors[2])
    sums = torch.empty(grid[0], 2, len(to_bias), dtype=to_bias.dtype, device=to_bias.device)
    told = rows if y is None else y
    adds = int(y is not None)
    with torch.cuda.device_of(rows):
        _sums_kernel[grid](
            rows, grad, told, sums, *vectors, count, steps, slope,
            channels, adds, **blocks,
        )  # fmt: skip
        _gradient_kernel[grid](
            rows, grad, told, rows if passed is None else passed, to_x,
            to_x if to_residual is None else to_residual, sums, *vectors,
            to_weight, to_bias, count, steps, grid[0], slope,
            channels, adds, int(passed is not None), PARTS=PARTS, **blocks,
        )  # fmt: skip
    return to_x, to_weight, to_bias, to_residual


def _blocks(rows: Tensor) -> tuple[tuple[int, int], int, dict[str, object]]:
    """Programs along rows and channels, the blocks that each walks over, and what a block is."""
    channels = rows.shape[-1]
    count = rows.numel() // channels
    block_channels = CHANNELS[channels > CHANNELS[0]]
    block_rows = BLOCK // block_channels
    across = triton.cdiv(channels, block_channels)
    programs = min(triton.cdiv(count, block_rows), max(1, PROGRAMS // across))
    steps = triton.cdiv(count, block_rows * programs)
    wide = tl.float64 if rows.dtype is torch.float64 else tl.float32
    blocks = {"WIDE": wide, "BLOCK_R": block_rows, "BLOCK_C": block_channels, "num_warps": WARPS}
    return (programs, across), steps, blocks
