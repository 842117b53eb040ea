"""3×3 convolutions with stride 2 in bfloat16 on a CPU: by one product each, and so are their
gradients, for which libraries turn weights and maps about. There is a native form only, which also
computes in float32, but no faster than the library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from synthesis_kernels import native
from synthesis_kernels.conv3x3 import gradient_sums, has, is_plain, is_square

TAPS = 9


def runs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether there is a native form for these tensors, and it pays."""
    parameters = [weight] if bias is None else [weight, bias]
    return (
        x.dtype is torch.bfloat16
        and is_plain(x)
        and all(is_plain(each) and each.dtype is torch.float32 for each in parameters)
        and x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and (bias is None or bias.shape == weight.shape[:1])
        and x.numel() > 0
        and all(width % 16 == 0 for width in weight.shape[:2])
        and has(torch.bfloat16)
    )


def has_layer(layer: nn.Module, precision: torch.dtype) -> bool:
    """Whether a layer is such a convolution, and the form is here and pays."""
    return (
        precision is torch.bfloat16
        and type(layer) is nn.Conv2d
        and is_square(layer, stride=2)
        and all(width % 16 == 0 for width in layer.weight.shape[:2])
        and layer.weight.device.type == "cpu"
        and has(precision)
    )


class StridedConv3x3(torch.autograd.Function):
    """The native form, where it `runs`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = native.as_rows(x)
        batch, height, width = rows.shape[:3]
        out = rows.new_empty(batch, -(-height // 2), -(-width // 2), len(weight))
        ctx.save_for_backward(rows, weight)
        shift = None if bias is None else bias.contiguous()
        given = (rows, native.Memory(weight), shift, _packed(rows, weight), out)
        native.call("strided_conv3x3", rows.dtype, *given, *_sizes(rows, weight))
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
            native.call("strided_conv3x3_backward", rows.dtype, *given, *_sizes(rows, weight))
            to_x = native.as_channels(out)
        if ctx.needs_input_grad[1]:
            to_weight = torch.empty_like(weight)
            sums, team = gradient_sums(TAPS, weight)
            pair = (rows, grad_rows, sums, native.Memory(to_weight))
            # It may lie in memory otherwise than the weight.
            sizes = (*_sizes(rows, to_weight), team)
            native.call("strided_conv3x3_weight", rows.dtype, *pair, *sizes)
        if ctx.needs_input_grad[2]:
            to_bias = native.channel_sums(grad_rows)
        return to_x, to_weight, to_bias


def _sizes(rows: Tensor, weight: Tensor) -> tuple[int, ...]:
    return (*rows.shape, len(weight), *weight.stride())


def _packed(rows: Tensor, weight: Tensor) -> Tensor:
    return rows.new_empty(weight.numel())
