"""3×3 and 1×1 convolutions with stride 2 on a CPU: by one product each, and so are their gradients,
for which libraries turn weights and maps about. There are native forms only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from synthesis_kernels import native
from synthesis_kernels.conv3x3 import has, is_followed, is_plain, is_square
from synthesis_kernels.native_conv import Convolution, Kernel, convolve, sizes, to_weight

KERNELS = {
    side: Kernel(f"strided_conv{side}x{side}", lambda side: -(-side // 2), Tensor.numel)
    for side in (1, 3)
}
"""By the side of their weights."""


def find_kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Kernel | None:
    """The native form for these tensors, if there is one."""
    parameters = [weight] if bias is None else [weight, bias]
    fits = (
        is_plain(x)
        and all(is_plain(each) and each.dtype is torch.float32 for each in parameters)
        and x.ndim == weight.ndim == 4
        and weight.shape[1] == x.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and x.numel() > 0
        and all(width % 16 == 0 for width in weight.shape[:2])
    )
    return _kernel_of(weight, x.dtype) if fits else None


def strided_conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Definition: stride 2, and a pixel sees as many to its left as to its right."""
    return F.conv2d(x, weight, bias, stride=2, padding=weight.shape[2] // 2)


def strided_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by the native form where there is one; differentiable in all three."""
    kernel = find_kernel(x, weight, bias)
    if kernel is not None and not is_followed():
        return Convolution.apply(x, weight, bias, kernel)
    return strided_conv_reference(x, weight, bias)


class StridedPair(native.Function):
    """`StridedPair.apply(x, weight, point)` is `strided_conv` of a map by 3×3 weights and by 1×1
    ones, both with a kernel of `find_kernel`'s: the gradient of x is written once, and not twice
    and added up.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        rows = native.as_rows(x)
        ctx.save_for_backward(rows, weight, point)
        ctx.set_materialize_grads(False)
        return convolve(KERNELS[3], rows, weight, None), convolve(KERNELS[1], rows, point, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, beside: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, weight, point = ctx.saved_tensors
        wants_x, wants_weight, wants_point = ctx.needs_input_grad
        shape = (len(rows), *(-(-side // 2) for side in rows.shape[1:3]))
        given = rows.new_zeros(*shape, len(weight)) if grad is None else native.as_rows(grad)
        other = rows.new_zeros(*shape, len(point)) if beside is None else native.as_rows(beside)
        to_x = _to_x(given, other, rows, weight, point) if wants_x else None
        return (
            to_x,
            to_weight(KERNELS[3], given, rows, weight) if wants_weight else None,
            to_weight(KERNELS[1], other, rows, point) if wants_point else None,
        )


def _to_x(grad: Tensor, beside: Tensor, rows: Tensor, weight: Tensor, point: Tensor) -> Tensor:
    out = torch.empty_like(rows)
    left = (grad, native.Memory(weight), rows.new_empty(weight.numel()))
    right = (beside, native.Memory(point), rows.new_empty(point.numel()))
    numbers = (*sizes(rows, weight), len(point), *point.stride()[:2])
    native.call("strided_pair_backward", rows.dtype, *left, *right, out, *numbers)
    return native.as_channels(out)


@native.unwatched
def are_pair(first: nn.Module, second: nn.Module, x: Tensor, precision: torch.dtype) -> bool:
    """Whether `StridedPair` makes what these two layers make of a map."""
    return (
        not is_followed()
        and type(first) is type(second) is nn.Conv2d
        and first.bias is second.bias is None
        and is_square(first, 3, stride=2)
        and is_square(second, 1, stride=2)
        and x.dtype is precision
        and find_kernel(x, first.weight) is not None
        and find_kernel(x, second.weight) is not None
    )


def has_layer(layer: nn.Module, precision: torch.dtype) -> bool:
    """Whether a layer is such a convolution, and the form is here."""
    return (
        type(layer) is nn.Conv2d
        and any(is_square(layer, side, stride=2) for side in KERNELS)
        and all(width % 16 == 0 for width in layer.weight.shape[:2])
        and layer.weight.device.type == "cpu"
        and _kernel_of(layer.weight, precision) is not None
    )


def _kernel_of(weight: Tensor, precision: torch.dtype) -> Kernel | None:
    height, width = weight.shape[2:]
    return KERNELS.get(height) if height == width and has(precision) else None
