"""Nearest ×2 and a 3×3 convolution as one: four phases of 2×2 taps, 2.25 times fewer
multiplications.

Every output pixel of a convolution over a doubled image sees each low-resolution pixel once, twice
or four times, so its nine weights fold into four. The four phases (row and column even or odd)
together are a transposed convolution of stride 2 with a 4×4 kernel, which is how libraries run them
without a copy. The weight stays the plain 3×3 one.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from synthesis_kernels.backend import asked_form


def upsample_conv_reference(
    x: Tensor,  # (B, I, H, W)
    weight: Tensor,  # (O, I, 3, 3)
    bias: Tensor | None = None,  # (O,)
) -> Tensor:  # (B, O, 2H, 2W)
    """Definition: nearest-neighbour doubling, then a convolution that keeps the size."""
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv2d(doubled, weight, bias, padding=1)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same with 16 multiplications per input pixel and channel pair instead of 36;
    differentiable in all three.

    The library's transposed convolution is the fast form on every device; asked for the reference,
    it takes that.
    """
    if asked_form() == "reference":
        return upsample_conv_reference(x, weight, bias)
    # Turned about, and each tap doubled along both axes: in one dimension (a, b, c) becomes
    # (c, b + c, a + b, a).
    turned = weight.transpose(0, 1).flip(2, 3)
    tall = F.pad(turned, (0, 0, 0, 1)) + F.pad(turned, (0, 0, 1, 0))
    kernel = F.pad(tall, (0, 1)) + F.pad(tall, (1, 0))
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
