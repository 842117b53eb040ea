"""Nearest ×2 and a 3×3 convolution as one: four phases of 2×2 taps, 2.25 times fewer multiplications.

Every output pixel of a convolution over a doubled image sees each low-resolution pixel once, twice or four times, so its
nine weights fold into four. The four phases (row and column even or odd) together are a transposed convolution of
stride 2 with a 4×4 kernel, which is how libraries run them without a copy. The weight stays the plain 3×3 one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from synthesis_kernels.backend import asked_form

# Tap a of the 3×3 kernel, over a doubled row, is these taps of the 4-wide transposed kernel.
_FOLD = ((0, 0, 1, 1), (0, 1, 1, 0), (1, 1, 0, 0))


def upsample_conv_reference(
    x: Tensor,  # (B, I, H, W)
    weight: Tensor,  # (O, I, 3, 3)
    bias: Tensor | None = None,  # (O,)
) -> Tensor:  # (B, O, 2H, 2W)
    """Definition: nearest-neighbour doubling, then a convolution that keeps the size."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same with 16 multiplications per input pixel and channel pair instead of 36; differentiable in all three.

    The library's transposed convolution is the fast form on every device; asked for the reference, it takes that.
    """
    if asked_form() == "reference":
        return upsample_conv_reference(x, weight, bias)
    fold = torch.tensor(_FOLD, dtype=weight.dtype, device="cpu").to(weight.device, non_blocking=True)
    kernel = torch.einsum("oiab,ax,by->ioxy", weight, fold, fold)
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
