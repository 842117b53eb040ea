"""Nearest ×2 and a 3×3 convolution as one, with fewer multiplications.

Every output pixel of a convolution over a doubled image sees each low-resolution pixel once, twice
or four times, so its nine weights fold into four. The four phases (row and column even or odd)
together are a transposed convolution of stride 2 with a 4×4 kernel, which is how libraries run them
without a copy: 16 multiplications a pixel and channel pair instead of 36. By Winograd's method it
takes 9, in the native form. The weight stays the plain 3×3 one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.backend import asked_form
from synthesis_kernels.conv3x3 import MOST_WEIGHTS, gradient_sums, is_followed, runs

PLACES = 9
"""Products that a tile is made by."""


def upsample_conv_reference(
    x: Tensor,  # (B, I, H, W)
    weight: Tensor,  # (O, I, 3, 3)
    bias: Tensor | None = None,  # (O,)
) -> Tensor:  # (B, O, 2H, 2W)
    """Definition: nearest-neighbour doubling, then a convolution that keeps the size."""
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv2d(doubled, weight, bias, padding=1)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same, differentiable in all three. Without a native form it is the library's transposed
    convolution; asked for the reference, it is that.
    """
    if asked_form() == "reference":
        return upsample_conv_reference(x, weight, bias)
    cast = x
    if torch.is_autocast_enabled("cpu") and x.dtype is torch.float32:
        cast = x.to(torch.get_autocast_dtype("cpu"))
    if _pays(cast, weight, bias):
        return _Winograd.apply(cast, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        kernel = (weight.flatten(2) @ _folded(weight)).unflatten(2, (4, 4))
    return F.conv_transpose2d(x, kernel.transpose(0, 1), bias, stride=2, padding=1)


def _folded(weight: Tensor) -> Tensor:  # (9, 16)
    """What makes a kernel of the transposed convolution of a plain one: turned about, and each tap
    doubled along both axes. In one dimension (a, b, c) becomes (c, b + c, a + b, a).
    """
    key = (weight.device, weight.dtype)
    if key not in _FOLDED:
        fold = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]], dtype=weight.dtype)
        _FOLDED[key] = torch.kron(fold, fold).to(weight.device)
    return _FOLDED[key]


_FOLDED: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _pays(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    is_small = weight.shape[0] * weight.shape[1] <= MOST_WEIGHTS
    return is_small and not is_followed() and runs(x, weight, bias)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = native.as_rows(x)
        batch, height, width = rows.shape[:3]
        out = rows.new_empty(batch, 2 * height, 2 * width, len(weight))
        shift = None if bias is None else bias.contiguous()
        given = (rows, native.Memory(weight), shift, _packed(rows, weight), out)
        _call("", given, rows, weight)
        ctx.save_for_backward(rows, weight)
        return native.as_channels(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        grad_rows = native.as_rows(grad)
        to_x: Tensor | None = None
        to_weight: Tensor | None = None
        to_bias: Tensor | None = None
        if ctx.needs_input_grad[0]:
            out = torch.empty_like(rows)
            given = (grad_rows, native.Memory(weight), _packed(rows, weight), out)
            _call("_backward", given, rows, weight)
            to_x = native.as_channels(out)
        if ctx.needs_input_grad[1]:
            to_weight = torch.empty_like(weight)
            sums, team = gradient_sums(PLACES, weight)
            # It may lie in memory otherwise than the weight.
            summed = (rows, grad_rows, sums, native.Memory(to_weight))
            _call("_weight", summed, rows, to_weight, team)
        if ctx.needs_input_grad[2]:
            to_bias = native.channel_sums(grad_rows)
        return to_x, to_weight, to_bias


def _call(
    part: str, given: tuple[native.Argument, ...], rows: Tensor, weight: Tensor, *team: int
) -> None:
    sizes = (*rows.shape, len(weight), *weight.stride(), *team)
    native.call(f"upsample_conv{part}", rows.dtype, *given, *sizes)


def _packed(rows: Tensor, weight: Tensor) -> Tensor:
    return rows.new_empty(PLACES * weight.shape[0] * weight.shape[1])
