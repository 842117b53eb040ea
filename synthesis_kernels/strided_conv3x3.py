"""3×3 convolutions with stride 2 in bfloat16 on a CPU: by one product each, and so are their
gradients, for which libraries turn weights and maps about. There is a native form only; in float32
it was no faster than the library (docs/log.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthesis_kernels.conv3x3 import has, is_followed, is_plain, is_square
from synthesis_kernels.native_conv import Convolution, Kernel


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


def strided_conv3x3_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Definition: stride 2, padding 1."""
    return F.conv2d(x, weight, bias, stride=2, padding=1)


def strided_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by the native form where there is one; differentiable in all three."""
    if runs(x, weight, bias) and not is_followed():
        return Convolution.apply(x, weight, bias, KERNEL)
    return strided_conv3x3_reference(x, weight, bias)


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


KERNEL = Kernel("strided_conv3x3", lambda side: -(-side // 2), Tensor.numel)
