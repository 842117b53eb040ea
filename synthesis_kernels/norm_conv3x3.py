"""A training BatchNorm, a ReLU and a 3×3 convolution as one, on a CPU.

The normalised map is never written: it is made again wherever it is read, which saves most of the
memory that goes to and fro between the three. There is a native form only (see `conv3x3`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.conv3x3 import (
    MOST_WEIGHTS,
    PLACES,
    can_add,
    is_followed,
    is_plain,
    packed_room,
    pays,
    runs,
)
from synthesis_kernels.native_conv import gradient_sums


def norm_conv3x3_reference(
    x: Tensor,  # (B, I, H, W)
    norm_weight: Tensor,  # (I,), like the next three
    norm_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor | None,  # () int64, how many were seen
    weight: Tensor,  # (O, I, 3, 3)
    bias: Tensor | None = None,  # (O,)
    residual: Tensor | None = None,  # (B, O, H, W)
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:  # (B, O, H, W)
    """Definition: conv(ReLU(BatchNorm(x))) + residual, with the batch's own statistics; the running
    ones take their share of them.
    """
    if batches is not None:
        batches.add_(1)
    normed = F.batch_norm(x, running_mean, running_var, norm_weight, norm_bias, True, momentum, eps)
    y = F.conv2d(normed.relu(), weight, bias, padding=1)
    return y if residual is None else y + residual


@native.unwatched
def fits(
    x: Tensor,
    vectors: Sequence[Tensor | None],  # (I,) of the BatchNorm
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
) -> bool:
    """Whether the native form runs for these tensors, and pays."""
    return (
        not is_followed()
        and runs(x, weight, bias)
        and pays(x, weight)
        and weight.shape[0] * weight.shape[1] <= MOST_WEIGHTS
        and all(_is_vector(each, x.shape[1]) for each in vectors)
        and (residual is None or can_add(residual, x, weight))
    )


def _is_vector(values: Tensor | None, channels: int) -> bool:
    return (
        values is not None
        and is_plain(values)
        and values.dtype is torch.float32
        and values.shape == (channels,)
        and values.is_contiguous()
    )


class NormConv3x3(native.Function):
    """`norm_conv3x3_reference` where it `fits`; x is float32 or bfloat16, all else float32.

    With `passes` it gives x, too, for whoever needs it besides: all of its gradient is then summed
    up on the way. Nobody may change that x in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        batches: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        momentum: float,
        eps: float,
        passes: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        rows = native.as_rows(x)
        outputs, inputs = weight.shape[:2]
        out = rows.new_empty(*rows.shape[:3], outputs)
        statistics = weight.new_empty(4, inputs)
        added = None if residual is None else native.as_rows(residual)
        shift = None if bias is None else bias.contiguous()
        norm = (norm_weight, norm_bias, running_mean, running_var, batches)
        given = (rows, *norm, native.Memory(weight), shift, added, statistics)
        sizes = (*rows.shape, outputs, *weight.stride())
        room = (_sums(weight), packed_room(rows, weight))
        rates = (float(momentum), float(eps))  # which may have been given as integers
        native.call("norm_conv3x3", rows.dtype, *given, *room, out, *sizes, *rates)
        ctx.save_for_backward(rows, weight, statistics)
        ctx.has = (bias is not None, residual is not None)
        ctx.set_materialize_grads(False)
        y = native.as_channels(out)
        return (y, x) if passes else y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, passed: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        rows, weight, statistics = ctx.saved_tensors
        has_bias, has_residual = ctx.has
        if grad is None:  # x alone was used
            grad = rows.new_zeros(*rows.shape[:3], len(weight)).movedim(-1, 1)
        above = None if passed is None else native.as_rows(passed.to(rows.dtype))
        grad_rows = native.as_rows(grad)
        to_x = torch.empty_like(rows)
        to_weight = torch.empty_like(weight)
        if to_weight.stride() != weight.stride():  # as a part of something larger has others
            weight = weight.clone()
        to_norm_weight, to_norm_bias = weight.new_empty(2, weight.shape[1])
        numbers = PLACES[rows.dtype] * len(weight) * weight.shape[1]
        products, team = gradient_sums(numbers, weight)
        given = (grad_rows, rows, above, native.Memory(weight), statistics)
        room = (_sums(weight), products, packed_room(rows, weight))
        found = (to_x, to_norm_weight, to_norm_bias, native.Memory(to_weight))
        sizes = (*rows.shape, len(weight), *weight.stride(), team)
        native.call("norm_conv3x3_backward", rows.dtype, *given, *room, *found, *sizes)
        return (
            native.as_channels(to_x),
            to_norm_weight,
            to_norm_bias,
            None,
            None,
            None,
            to_weight,
            native.channel_sums(grad_rows) if has_bias else None,
            grad if has_residual else None,
            None,
            None,
            None,
        )


def _sums(weight: Tensor) -> Tensor:
    return weight.new_empty(torch.get_num_threads() * 2 * weight.shape[1])
