"""`views` for CUDA: where a pixel comes from is computed where it is read, and nothing in between
is stored.
"""

# ruff: noqa: ANN202, N803 (kernels: constants are in capitals, and Triton reads annotations)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from synthesis_kernels.views import ViewPlan

PIXELS = 256
"""Of one program."""


@triton.jit
def _whole(draw, count):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    """A number in [0, 1) as one of `count` integers; the product may round up to `count` itself."""
    return tl.minimum((draw * count).to(tl.int64), count - 1)


@triton.jit
def _views_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    pool_ptr, index_ptr, draws_ptr, out_ptr, images, count, mixup,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    CROP: tl.constexpr, FLIP: tl.constexpr, CUTOUT: tl.constexpr, MIXES: tl.constexpr,
    PIXELS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    draw = draws_ptr + b  # lane after lane, `count` apart
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    i = pixel // W
    j = pixel % W
    x = j
    if FLIP:
        mirrored = tl.load(draw + 2 * count) < 0.5
        x = tl.where(mirrored, W - 1 - j, j)
    y = i + _whole(tl.load(draw), 2 * CROP + 1) - CROP
    x = x + _whole(tl.load(draw + count), 2 * CROP + 1) - CROP
    seen = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    if CUTOUT:
        top = _whole(tl.load(draw + 3 * count), H) - CUTOUT // 2
        left = _whole(tl.load(draw + 4 * count), W) - CUTOUT // 2
        seen = seen & ~((i >= top) & (i < top + CUTOUT) & (j >= left) & (j < left + CUTOUT))

    channel = tl.arange(0, BLOCK_C)
    real = (pixel < H * W)[:, None] & (channel < C)[None, :]
    seen = seen[:, None] & real
    place = (y * W + x)[:, None] + channel[None, :] * (H * W)
    image = tl.load(index_ptr + b) * (C * H * W)
    value = tl.load(pool_ptr + image + place, mask=seen, other=0).to(tl.float32)
    # Rounded as torch divides; Triton's own `/` need not be.
    value = tl.div_rn(value, 255.0)
    if MIXES:
        partner = _whole(tl.load(draw + 6 * count), images) * (C * H * W)
        # Blended with itself, a view stays as it is.
        partner = tl.where(tl.load(draw + 5 * count) < mixup, partner, image)
        share = tl.load(draw + 7 * count)
        other = tl.load(pool_ptr + partner + place, mask=seen, other=0).to(tl.float32)
        other = tl.div_rn(other, 255.0)
        apart = value - other
        # torch.lerp's own two sides.
        value = tl.where(share < 0.5, other + share * apart, value - apart * (1.0 - share))
    tl.store(out_ptr + b * (C * H * W) + pixel[:, None] * C + channel[None, :], value, mask=real)


def gather_views(
    pool: Tensor,  # (N, C, H, W) uint8, contiguous
    index: Tensor,  # (B,) int64
    draws: Tensor,  # (LANES, B) float32
    plan: ViewPlan,
) -> Tensor:  # (B, C, H, W) float32, channels last
    """The views that `draws` describe, in one launch."""
    settings = (plan.crop, plan.flip, plan.cutout, float(plan.mixup))
    return _gather(pool, index, draws, *settings).permute(0, 3, 1, 2)


@torch.library.custom_op("echoset::triton_views", mutates_args=())
def _gather(
    pool: Tensor, index: Tensor, draws: Tensor, crop: int, flip: bool, cutout: int, mixup: float
) -> Tensor:
    count = len(index)
    images, channels, height, width = pool.shape
    out = torch.empty(count, height, width, channels, device=pool.device)
    sizes = {
        "C": channels,
        "H": height,
        "W": width,
        "CROP": crop,
        "FLIP": flip,
        "CUTOUT": cutout,
        "MIXES": mixup > 0,
    }
    grid = (count, triton.cdiv(height * width, PIXELS))
    with torch.cuda.device_of(pool):
        _views_kernel[grid](
            pool, index.contiguous(), draws.contiguous(), out, images, count, mixup,
            **sizes, PIXELS=PIXELS, BLOCK_C=triton.next_power_of_2(channels),
        )  # fmt: skip
    return out


@_gather.register_fake
def _(
    pool: Tensor, index: Tensor, draws: Tensor, crop: int, flip: bool, cutout: int, mixup: float
) -> Tensor:
    _, channels, height, width = pool.shape
    return pool.new_empty(len(index), height, width, channels, dtype=torch.float32)
