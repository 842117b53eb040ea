"""3×3 convolutions with stride 2, and 1×1 ones, in bfloat16 on a CPU: by one product each, and so
are their gradients, for which libraries turn weights and maps about. There is a native form only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.conv3x3 import gradient_sums, is_plain

KINDS = {(3, 2): "patch_conv_3_2", (1, 1): "patch_conv_1_1", (1, 2): "patch_conv_1_2"}
"""By side of the kernel and stride; a 3×3 one has one row of zeros around the map."""


def runs(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> bool:
    """Whether there is a native form for these tensors, and it pays."""
    parameters = [weight] if bias is None else [weight, bias]
    kind = KINDS.get((weight.shape[-1], stride))
    return (
        kind is not None
        and x.dtype is torch.bfloat16
        and is_plain(x)
        and all(is_plain(each) and each.dtype is torch.float32 for each in parameters)
        and x.ndim == 4
        and weight.shape[1:3] == (x.shape[1], weight.shape[3])
        and all(width % 16 == 0 for width in weight.shape[:2])
        and native.has(f"{kind}_bfloat16")
    )


class PatchConv(torch.autograd.Function):
    """The native form, where it `runs`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        rows = native.as_rows(x)
        batch, height, width = rows.shape[:3]
        shape = (batch, -(-height // stride), -(-width // stride), len(weight))
        out = rows.new_empty(shape)
        ctx.kind = KINDS[weight.shape[-1], stride]
        ctx.save_for_backward(rows, weight)
        given = (rows, native.Memory(weight), bias, _packed(rows, weight), out)
        native.call(ctx.kind, rows.dtype, *given, *_sizes(rows, weight))
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
            native.call(f"{ctx.kind}_backward", rows.dtype, *given, *_sizes(rows, weight))
            to_x = native.as_channels(out)
        if ctx.needs_input_grad[1]:
            to_weight = torch.empty_like(weight)
            sums, team = gradient_sums(weight.shape[-1] ** 2, weight)
            given = (rows, grad_rows, sums, native.Memory(to_weight))
            native.call(f"{ctx.kind}_weight", rows.dtype, *given, *_sizes(rows, weight), team)
        if ctx.needs_input_grad[2]:
            to_bias = native.channel_sums(grad_rows)
        return to_x, to_weight, to_bias, None


def _sizes(rows: Tensor, weight: Tensor) -> tuple[int, ...]:
    return (*rows.shape, len(weight), *weight.stride())


def _packed(rows: Tensor, weight: Tensor) -> Tensor:
    return rows.new_empty(weight.numel())
