"""`bn_match` for CUDA: one pass over rows of channels each way. Sums are added up in a fixed order,
so results repeat.
"""

# ruff: noqa: ANN202, N803 (kernels: constants are in capitals, and Triton reads annotations)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
"""Elements that a program holds at a time: sixteen a thread, and as many of each sum."""
PROGRAMS = 1024
"""About one wave on a large GPU. Each walks over several blocks, so there are few partial sums."""


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    rows_ptr, y_ptr, scale_ptr, shift_ptr, centre_ptr, sums_ptr, rows,
    STEPS: tl.constexpr, C: tl.constexpr, RELU: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    wide = scale_ptr.dtype.element_ty
    scale = tl.load(scale_ptr + channel, mask=real, other=0.0)[None, :]
    shift = tl.load(shift_ptr + channel, mask=real, other=0.0)[None, :]
    centre = tl.load(centre_ptr + channel, mask=real, other=0.0)[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_C), dtype=wide)
    squares = tl.zeros((BLOCK_R, BLOCK_C), dtype=wide)
    for step in range(STEPS):
        # 64-bit: rows · channels may pass 2³¹.
        row = (program + step * tl.num_programs(0)).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (row < rows)[:, None] & real[None, :]
        place = row[:, None] * C + channel[None, :]
        x = tl.load(rows_ptr + place, mask=mask, other=0.0).to(wide)
        apart = tl.where(mask, x - centre, tl.zeros_like(x))
        total += apart
        squares += apart * apart
        y = x * scale + shift
        if RELU:
            y = tl.where(y < 0, tl.zeros_like(y), y)  # unlike a maximum, lets NaN through
        tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=mask)
    place = program * 2 * C + channel
    tl.store(sums_ptr + place, tl.sum(total, axis=0), mask=real)
    tl.store(sums_ptr + place + C, tl.sum(squares, axis=0), mask=real)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    rows_ptr, grad_ptr, out_ptr, scale_ptr, shift_ptr, mean_ptr, slope_ptr, base_ptr, rows,
    C: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    wide = scale_ptr.dtype.element_ty
    scale = tl.load(scale_ptr + channel, mask=real, other=0.0)[None, :]
    mean = tl.load(mean_ptr + channel, mask=real, other=0.0)[None, :]
    slope = tl.load(slope_ptr + channel, mask=real, other=0.0)[None, :]
    base = tl.load(base_ptr + channel, mask=real, other=0.0)[None, :]
    mask = (row < rows)[:, None] & real[None, :]
    place = row[:, None] * C + channel[None, :]
    x = tl.load(rows_ptr + place, mask=mask, other=0.0).to(wide)
    through = tl.load(grad_ptr + place, mask=mask, other=0.0).to(wide) * scale
    if RELU:
        shift = tl.load(shift_ptr + channel, mask=real, other=0.0)[None, :]
        through = tl.where(x * scale + shift > 0, through, tl.zeros_like(through))
    out = through + ((x - mean) * slope + base)
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op("echoset::triton_match_forward", mutates_args=())
def forward(
    rows: Tensor,  # (*, C) contiguous
    scale: Tensor,  # (C,) of the type to compute in, like shift and centre
    shift: Tensor,
    centre: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, biased variance) of rows of channels; the moments are taken around `centre`."""
    count, channels, block_rows, block_channels = _blocks(rows)
    across = triton.cdiv(channels, block_channels)
    programs = min(triton.cdiv(count, block_rows), max(1, PROGRAMS // across))
    steps = triton.cdiv(count, block_rows * programs)
    y = torch.empty_like(rows)
    sums = scale.new_empty(programs, 2, channels)
    vectors = [vector.contiguous() for vector in (scale, shift, centre)]
    with torch.cuda.device_of(rows):
        _forward_kernel[programs, across](
            rows, y, *vectors, sums, count,
            STEPS=steps, C=channels, RELU=relu, BLOCK_R=block_rows, BLOCK_C=block_channels,
        )  # fmt: skip
    offset, square = sums.sum(0) / count
    return y, centre + offset, (square - offset.square()).clamp_min_(0)


@forward.register_fake
def _(
    rows: Tensor, scale: Tensor, shift: Tensor, centre: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(scale), torch.empty_like(scale)


@torch.library.custom_op("echoset::triton_match_backward", mutates_args=())
def backward(
    rows: Tensor,  # (*, C) contiguous, like grad
    grad: Tensor,
    scale: Tensor,  # (C,) of the type to compute in, like the other four
    shift: Tensor,
    mean: Tensor,
    slope: Tensor,
    base: Tensor,
    relu: bool,
) -> Tensor:
    """The gradient of rows: grad through ReLU and scale, plus (rows − mean)·slope + base for the
    moments.
    """
    count, channels, block_rows, block_channels = _blocks(rows)
    out = torch.empty_like(rows)
    vectors = [vector.contiguous() for vector in (scale, shift, mean, slope, base)]
    grid = (triton.cdiv(count, block_rows), triton.cdiv(channels, block_channels))
    with torch.cuda.device_of(rows):
        _backward_kernel[grid](
            rows, grad, out, *vectors, count,
            C=channels, RELU=relu, BLOCK_R=block_rows, BLOCK_C=block_channels,
        )  # fmt: skip
    return out


@backward.register_fake
def _(
    rows: Tensor,
    grad: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    slope: Tensor,
    base: Tensor,
    relu: bool,
) -> Tensor:
    return torch.empty_like(rows)


def _blocks(rows: Tensor) -> tuple[int, int, int, int]:
    """Rows, channels, and how many of each a block has."""
    channels = rows.shape[-1]
    block_channels = min(triton.next_power_of_2(channels), 64)
    return rows.numel() // channels, channels, BLOCK // block_channels, block_channels
