"""3×3 and 1×1 convolutions with stride 2 on a CPU: by one product each, and so are their gradients,
for which libraries turn weights and maps about. There are native forms only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthesis_kernels.conv3x3 import has, is_followed, is_plain, is_square
from synthesis_kernels.native_conv import Convolution, Kernel

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
