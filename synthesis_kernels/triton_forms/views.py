"""`views` for CUDA: what happens to an image is drawn, and where a pixel comes from is computed,
where it is read. Nothing in between is stored.
"""

# ruff: noqa: ANN202, N803 (kernels: constants are in capitals, and Triton reads annotations)
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from synthesis_kernels.counter import start_place
from synthesis_kernels.triton_forms.counter import signed, stream, uniform
from synthesis_kernels.triton_forms.rounding import EXACT
from synthesis_kernels.views import PASTE, ViewPlan

PIXELS = 256
"""Of one program."""
LOOK_UP = 256
"""Views of which a program asks at once whether they show its image."""
CHANGING = [
    "images", "count", "place", "paste_place", "pool_n", "pool_c", "pool_h", "pool_w", "grad_n",
    "grad_c", "grad_h", "grad_w", "view_step", "C", "H", "W", "crop", "flips", "cutout", "is_bytes",
]  # fmt: skip


@triton.jit
def _whole(draw, count):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    """A number in [0, 1) as one of `count` integers; the product may round up to `count` itself."""
    return tl.minimum((draw * count).to(tl.int64), count - 1)


@triton.jit
def _is_cut(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    key, i, j, H, W, cutout
):
    top = _whole(uniform(key, 3), H) - cutout // 2
    left = _whole(uniform(key, 4), W) - cutout // 2
    return (i >= top) & (i < top + cutout) & (j >= left) & (j < left + cutout)


@triton.jit
def _is_pasted(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    key, i, j, cutmix, H, W
):
    """Rounded as torch rounds it, so long as no product is fused with the sum after it."""
    # No length at all where nothing is pasted.
    part = tl.where(uniform(key, 0) < cutmix, tl.sqrt_rn(uniform(key, 5)), -1.0)
    rows = tl.abs(i.to(tl.float32) + 0.5 - uniform(key, 2) * H) * 2 <= part * H
    columns = tl.abs(j.to(tl.float32) + 0.5 - uniform(key, 3) * W) * 2 <= part * W
    return rows & columns


@triton.jit
def _pixels(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    bytes_ptr, pool_ptr, place, seen, is_bytes, WIDE: tl.constexpr
):
    """Out of whichever of both there is; bytes as torch divides them, unlike Triton's own `/`."""
    if is_bytes:
        value = tl.load(bytes_ptr + place, mask=seen, other=0).to(tl.float32)
        value = tl.div_rn(value, 255.0).to(WIDE)
    else:
        value = tl.load(pool_ptr + place, mask=seen, other=0).to(WIDE)
    return value


@triton.jit(do_not_specialize=CHANGING)
def _views_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    bytes_ptr, pool_ptr, index_ptr, view_ptr, out_ptr, images, place, paste_place,
    pool_n, pool_c, pool_h, pool_w, view_step,
    C, H, W, crop, flips, cutout, mixup, cutmix, is_bytes,
    WIDE: tl.constexpr, PIXELS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    i = pixel // W
    j = pixel % W
    channel = tl.arange(0, BLOCK_C)[None, :]
    real = (pixel < H * W)[:, None] & (channel < C)
    index = tl.load(index_ptr + b)
    view = tl.load(view_ptr + b * view_step)
    key = stream(index, view, place)
    exists = (index >= 0) & (index < images)
    index = tl.where(exists, index, 0)

    y = i + _whole(uniform(key, 0), 2 * crop + 1) - crop
    x = j + _whole(uniform(key, 1), 2 * crop + 1) - crop
    if flips:
        x += tl.where(uniform(key, 2) < 0.5, W - 1 - 2 * j, 0)
    seen = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    if cutout:
        seen = seen & (_is_cut(key, i, j, H, W, cutout) == 0)
    partner = index
    source = index + tl.zeros_like(y)
    if mixup > 0:
        partner = tl.where(uniform(key, 5) < mixup, _whole(uniform(key, 6), images), index)
    other = partner + tl.zeros_like(y)
    if cutmix > 0:
        paste = stream(index, view, paste_place)
        pasted = _is_pasted(paste, i, j, cutmix, H, W)
        y = tl.where(pasted, i, y)
        x = tl.where(pasted, j, x)
        source = tl.where(pasted, _whole(uniform(paste, 1), images), source)
        other = tl.where(pasted, source, other)
        seen = seen | pasted
    seen = seen[:, None] & real
    within = y[:, None] * pool_h + x[:, None] * pool_w + channel * pool_c
    value = _pixels(bytes_ptr, pool_ptr, source[:, None] * pool_n + within, seen, is_bytes, WIDE)
    if mixup > 0:
        # Blended with itself, a pixel stays as it is.
        from_other = other[:, None] * pool_n + within
        blend = _pixels(bytes_ptr, pool_ptr, from_other, seen, is_bytes, WIDE)
        share = uniform(key, 7)
        if is_bytes == 0:
            share = share.to(pool_ptr.dtype.element_ty).to(tl.float32)
        apart = value - blend
        # torch.lerp's own two sides.
        value = tl.where(share < 0.5, blend + share * apart, value - apart * (1.0 - share))
    value = tl.where(exists, value, float("nan"))
    out = out_ptr + b * (C * H * W) + pixel[:, None] * C + channel
    tl.store(out, value.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=CHANGING)
def _spread_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    grad_ptr, index_ptr, view_ptr, out_ptr, images, count, place, paste_place,
    grad_n, grad_c, grad_h, grad_w, view_step,
    C, H, W, crop, flips, cutout, mixup, cutmix,
    WIDE: tl.constexpr, PIXELS: tl.constexpr, BLOCK_C: tl.constexpr, LOOK_UP: tl.constexpr,
):  # fmt: skip
    """The gradient of one image's pixels: of all views that show them, in the batch's order."""
    n = tl.program_id(0)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    y = pixel // W
    x = pixel % W
    channel = tl.arange(0, BLOCK_C)[None, :]
    real = (pixel < H * W)[:, None] & (channel < C)
    total = tl.zeros((PIXELS, BLOCK_C), WIDE)
    for first in range(0, count, LOOK_UP):
        some = first + tl.arange(0, LOOK_UP)
        listed = some < count
        indices = tl.load(index_ptr + some, mask=listed, other=-1)
        shows = indices == n
        numbers = tl.load(view_ptr + some * view_step, mask=listed, other=0)
        if mixup > 0:
            keys = stream(indices, numbers, place)
            shows |= (uniform(keys, 5) < mixup) & (_whole(uniform(keys, 6), images) == n)
        if cutmix > 0:
            keys = stream(indices, numbers, paste_place)
            shows |= (uniform(keys, 0) < cutmix) & (_whole(uniform(keys, 1), images) == n)
        shows &= (indices >= 0) & (indices < images)
        last = first - 1
        for _ in range(tl.sum(shows.to(tl.int32))):
            last = tl.min(tl.where(shows & (some > last), some, count))
            index = tl.load(index_ptr + last)
            view = tl.load(view_ptr + last * view_step)
            key = stream(index, view, place)
            paste = stream(index, view, paste_place)
            grad = grad_ptr + last.to(tl.int64) * grad_n + channel * grad_c
            # Where this image's pixel (y, x) went.
            i = y - (_whole(uniform(key, 0), 2 * crop + 1) - crop)
            j = x - (_whole(uniform(key, 1), 2 * crop + 1) - crop)
            if flips:
                j = tl.where(uniform(key, 2) < 0.5, W - 1 - j, j)
            seen = (i >= 0) & (i < H) & (j >= 0) & (j < W)
            if cutout:
                seen = seen & (_is_cut(key, i, j, H, W, cutout) == 0)
            if cutmix > 0:
                seen = seen & (_is_pasted(paste, i, j, cutmix, H, W) == 0)
            part = tl.where(index == n, 1.0, 0.0).to(WIDE)
            if mixup > 0:
                share = uniform(key, 7).to(grad_ptr.dtype.element_ty).to(WIDE)
                blended = uniform(key, 5) < mixup
                part = tl.where(blended, part * share, part)
                is_other = blended & (_whole(uniform(key, 6), images) == n)
                part += tl.where(is_other, 1.0 - share, 0.0)
            went = i[:, None] * grad_h + j[:, None] * grad_w
            value = tl.load(grad + went, mask=seen[:, None] & real, other=0)
            total += part * value.to(WIDE)
            if cutmix > 0:
                chance = tl.where(_whole(uniform(paste, 1), images) == n, cutmix, -1.0)
                gives = _is_pasted(paste, y, x, chance, H, W)
                stayed = y[:, None] * grad_h + x[:, None] * grad_w
                value = tl.load(grad + stayed, mask=gives[:, None] & real, other=0)
                total += value.to(WIDE)
    out = out_ptr + n.to(tl.int64) * (C * H * W) + pixel[:, None] * C + channel
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=real)


def gather_views(
    pool: Tensor,  # (N, C, H, W) uint8 or float, any strides
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64, or ()
    out: Tensor,  # (B, C, H, W) channels last
    plan: ViewPlan,
    seed: int,
) -> None:
    """Write the views into `out`, in one launch."""
    is_bytes = pool.dtype is torch.uint8
    # The other one of both is never looked at.
    pools = (pool, out) if is_bytes else (index.view(torch.uint8), pool)
    grid, sizes, settings = _launch(out, plan)
    with torch.cuda.device_of(pool):
        _views_kernel[grid](
            *pools, index, view, out, len(pool), *_places(seed), *pool.stride(), view.ndim,
            *sizes, int(is_bytes), **settings,
        )  # fmt: skip


def spread_views(
    grad: Tensor,  # (B, C, H, W) any strides
    index: Tensor,  # (B,) int64
    view: Tensor,  # (B,) int64, or ()
    out: Tensor,  # (N, C, H, W) channels last
    plan: ViewPlan,
    seed: int,
) -> None:
    """Write the pool's gradient into `out`, in one launch."""
    grid, sizes, settings = _launch(out, plan)
    with torch.cuda.device_of(grad):
        _spread_kernel[grid](
            grad, index, view, out, len(out), len(grad), *_places(seed), *grad.stride(), view.ndim,
            *sizes, LOOK_UP=LOOK_UP, **settings,
        )  # fmt: skip


def _places(seed: int) -> tuple[int, int]:
    return signed(start_place(seed)), signed(start_place(seed + PASTE))


def _launch(
    out: Tensor, plan: ViewPlan
) -> tuple[tuple[int, int], tuple[float, ...], dict[str, Any]]:
    """A kernel's grid, what it is told of images and views, and its constants."""
    count, channels, height, width = out.shape
    drawn = (plan.crop, int(plan.flip), plan.cutout, float(plan.mixup), float(plan.cutmix))
    settings = {
        "WIDE": tl.float64 if out.dtype is torch.float64 else tl.float32,
        "PIXELS": PIXELS,
        "BLOCK_C": triton.next_power_of_2(channels),
        **EXACT,
    }
    grid = (count, triton.cdiv(height * width, PIXELS))
    return grid, (channels, height, width, *drawn), settings
