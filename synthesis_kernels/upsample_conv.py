"""Nearest ×2 and a 3×3 convolution as one, with fewer multiplications.

Every output pixel of a convolution over a doubled image sees each low-resolution pixel once, twice
or four times, so its nine weights fold into four. The four phases (row and column even or odd)
together are a transposed convolution of stride 2 with a 4×4 kernel, which is how libraries run them
without a copy: 16 multiplications a pixel and channel pair instead of 36. By Winograd's method it
takes 9, in the native form. The weight stays the plain 3×3 one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from synthesis_kernels.backend import asked_form
from synthesis_kernels.conv3x3 import MOST_WEIGHTS, is_followed, runs
from synthesis_kernels.native_conv import Convolution, Kernel


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
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and x.dtype is torch.float32:
        x = x.to(torch.get_autocast_dtype("cpu"))
    if _pays(x, weight, bias):
        return Convolution.apply(x, weight, bias, KERNEL)
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


KERNEL = Kernel("upsample_conv", lambda side: 2 * side, Tensor.numel)
