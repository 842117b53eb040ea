"""`turn` for CUDA: an image's numbers are drawn, and where a pixel comes from is computed, where it
is read.
"""

# ruff: noqa: ANN202, N803 (kernels: constants are in capitals, and Triton reads annotations)
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from synthesis_kernels.counter import start_place
from synthesis_kernels.triton_forms.counter import signed, stream, uniform
from synthesis_kernels.triton_forms.rounding import FUSED
from synthesis_kernels.turn import TurnPlan

PIXELS = 256
"""Of one program."""


@triton.jit
def _share(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    image_ptr, y, x, weight, channel, real,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """What the pixel (y, x) adds to those that lie beside it: nothing where it is outside."""
    inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    place = ((y * W + x) * C)[:, None] + channel
    value = tl.load(image_ptr + place, mask=inside[:, None] & real, other=0)
    return value * weight[:, None]


@triton.jit(do_not_specialize=["place"])
def _turn_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    images_ptr, index_ptr, view_ptr, out_ptr, rotate, scale, shift, place, view_step,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr,
    PIXELS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, BLOCK_C)[None, :]
    real = (pixel < H * W)[:, None] & (channel < C)
    key = stream(tl.load(index_ptr + b), tl.load(view_ptr + b * view_step), place)
    angle = (uniform(key, 0) * 2 - 1) * rotate
    zoom = 1 + (uniform(key, 1) * 2 - 1) * scale
    right = (uniform(key, 2) * 2 - 1) * shift * SIDE
    down = (uniform(key, 3) * 2 - 1) * shift * SIDE
    cosine = tl.cos(angle) * zoom
    sine = tl.sin(angle) * zoom
    # From the middle, in pixels.
    i = (pixel // W).to(tl.float32) - 0.5 * (H - 1)
    j = (pixel % W).to(tl.float32) - 0.5 * (W - 1)
    # Times a side and over it: square images keep the last bit that they always had.
    x = cosine * j - sine * SIDE / SIDE * i + right + 0.5 * (W - 1)
    y = sine * SIDE / SIDE * j + cosine * i + down + 0.5 * (H - 1)
    left = tl.floor(x)
    above = tl.floor(y)
    x -= left
    y -= above
    left = left.to(tl.int32)
    above = above.to(tl.int32)
    image = images_ptr + b * (C * H * W)
    value = _share(image, above, left, (1 - y) * (1 - x), channel, real, C, H, W)
    value += _share(image, above, left + 1, (1 - y) * x, channel, real, C, H, W)
    value += _share(image, above + 1, left, y * (1 - x), channel, real, C, H, W)
    value += _share(image, above + 1, left + 1, y * x, channel, real, C, H, W)
    out = out_ptr + b * (C * H * W) + pixel[:, None] * C + channel
    tl.store(out, value, mask=real)


def turn_rows(
    rows: Tensor,  # (B, H, W, C) float32
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64, or ()
    out: Tensor,  # (B, H, W, C)
    plan: TurnPlan,
    seed: int,
) -> None:
    """Write the images, turned, into `out`, in one launch."""
    count, height, width, channels = rows.shape
    grid = (count, triton.cdiv(height * width, PIXELS))
    limits = (math.radians(plan.rotate), float(plan.scale), float(plan.shift))
    with torch.cuda.device_of(rows):
        _turn_kernel[grid](
            rows,
            index,
            view,
            out,
            *limits,
            signed(start_place(seed)),
            view.ndim,
            C=channels,
            H=height,
            W=width,
            SIDE=min(height, width),
            PIXELS=PIXELS,
            BLOCK_C=triton.next_power_of_2(channels),
            **FUSED,
        )
