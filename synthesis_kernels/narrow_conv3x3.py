"""3×3 convolutions on a CPU from many channels to the few of an image, as generators end in.

Libraries fill their registers with outputs, of which there are hardly any here. One product with
the weights of all taps gives what every pixel says to each of its nine neighbours; the weights'
gradient is one product, too. There is a native form only, for AVX2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.backend import asked_form
from synthesis_kernels.conv3x3 import conv3x3_reference, is_followed, is_plain

MOST_OUTPUTS = 4
TAPS = 9
LANES = 16
"""Columns of products come in multiples of so many numbers."""


def runs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether there is a native form for these tensors."""
    parameters = [weight] if bias is None else [weight, bias]
    return (
        asked_form() in ("auto", "native")
        and is_plain(x)
        and all(is_plain(each) and each.dtype is torch.float32 for each in parameters)
        and x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and (bias is None or bias.shape == weight.shape[:1])
        and x.numel() > 0
        and 0 < len(weight) <= MOST_OUTPUTS
        and weight.shape[1] % 16 == 0
        and native.has(f"narrow_conv3x3_{native.DTYPES.get(x.dtype)}")
    )


def narrow_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`conv3x3_reference` by the native form where there is one; differentiable in all three."""
    if runs(x, weight, bias) and not is_followed():
        return NarrowConv3x3.apply(x, weight, bias)
    return conv3x3_reference(x, weight, bias)


class NarrowConv3x3(torch.autograd.Function):
    """The native form, where it `runs`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = native.as_rows(x)
        out = rows.new_empty(*rows.shape[:3], len(weight))
        shift = None if bias is None else bias.contiguous()
        given = (rows, native.Memory(weight), shift, out)
        native.call("narrow_conv3x3", rows.dtype, *given, *_sizes(rows, weight))
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
            given = (grad_rows, native.Memory(weight), out)
            native.call("narrow_conv3x3_backward", rows.dtype, *given, *_sizes(rows, weight))
            to_x = native.as_channels(out)
        if ctx.needs_input_grad[1]:
            to_weight = torch.empty_like(weight)
            columns = -(-TAPS * len(weight) // LANES) * LANES
            sums = weight.new_empty(torch.get_num_threads() * weight.shape[1] * columns)
            native.call(
                "narrow_conv3x3_weight",
                rows.dtype,
                *(rows, grad_rows, sums, native.Memory(to_weight)),
                *_sizes(rows, to_weight),
            )
        if ctx.needs_input_grad[2]:
            to_bias = native.channel_sums(grad_rows)
        return to_x, to_weight, to_bias


def _sizes(rows: Tensor, weight: Tensor) -> tuple[int, ...]:
    return (*rows.shape, len(weight), *weight.stride())
