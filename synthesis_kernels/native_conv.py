"""What the native convolutions share that read their weights anew at every call: `narrow_conv3x3`,
`strided_conv` and `upsample_conv`. Each has three functions in C++, of the same arguments: NAME,
NAME_backward for the gradient of the input, NAME_weight for that of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthesis_kernels import native

MOST_SUMS = 36 * 16 * 256 * 256
"""Numbers that all threads have to add up in, each for itself: 150 MB."""


@dataclass(frozen=True)
class Kernel:
    """One of them."""

    name: str
    side: Callable[[int], int]
    """The side of its output, by that of its input."""
    room: Callable[[Tensor], int]
    """How many numbers the weights, (O, I, side, side), are when they lie as it reads them; and as
    many are the sums of their gradient.
    """


class Convolution(native.Function):
    """`Convolution.apply(x, weight, bias, kernel)`; x is float32 or bfloat16, all else float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Kernel) -> Tensor:
        rows = native.as_rows(x)
        out = convolve(kernel, rows, weight, bias)
        ctx.save_for_backward(rows, weight)
        ctx.kernel = kernel
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        grad_rows = native.as_rows(grad)
        return (
            _to_x(ctx.kernel, grad_rows, rows, weight) if wants_x else None,
            to_weight(ctx.kernel, grad_rows, rows, weight) if wants_weight else None,
            native.channel_sums(grad_rows) if wants_bias else None,
            None,
        )


def convolve(kernel: Kernel, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Its output, (B, O, h, w); rows are (B, H, W, I)."""
    batch, height, width = rows.shape[:3]
    out = rows.new_empty(batch, kernel.side(height), kernel.side(width), len(weight))
    shift = None if bias is None else bias.contiguous()
    packed = rows.new_empty(kernel.room(weight))
    given = (rows, native.Memory(weight), shift, packed, out)
    native.call(kernel.name, rows.dtype, *given, *sizes(rows, weight))
    return native.as_channels(out)


def _to_x(kernel: Kernel, grad_rows: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty_like(rows)
    given = (grad_rows, native.Memory(weight), rows.new_empty(kernel.room(weight)), out)
    native.call(f"{kernel.name}_backward", rows.dtype, *given, *sizes(rows, weight))
    return native.as_channels(out)


def to_weight(kernel: Kernel, grad_rows: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """The gradient of its weights."""
    # It may lie in memory otherwise than the weight.
    out = torch.empty_like(weight)
    sums, team = gradient_sums(kernel.room(weight), weight)
    given = (rows, grad_rows, sums, native.Memory(out))
    native.call(f"{kernel.name}_weight", rows.dtype, *given, *sizes(rows, out), team)
    return out


def gradient_sums(room: int, weight: Tensor) -> tuple[Tensor, int]:
    """Where a team adds up `room` numbers, each of them for itself; and how many they are."""
    team = min(torch.get_num_threads(), max(1, MOST_SUMS // room))
    return weight.new_empty(team * room), team


def sizes(rows: Tensor, weight: Tensor) -> tuple[int, ...]:
    """What each of its functions is told of both."""
    return (*rows.shape, len(weight), *weight.stride())
