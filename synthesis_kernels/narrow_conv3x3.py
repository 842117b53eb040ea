"""3×3 convolutions on a CPU from many channels to the few of an image, as generators end in.

Libraries fill their registers with outputs, of which there are hardly any here. One product with
the weights of all taps gives what every pixel says to each of its nine neighbours; the weights'
gradient is one product, too. There is a native form only, for AVX2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.backend import asked_form
from synthesis_kernels.conv3x3 import conv3x3_reference, is_followed, is_plain
from synthesis_kernels.native_conv import Convolution, Kernel

MOST_OUTPUTS = 4
TAPS = 9
LANES = 16
"""Columns of products come in multiples of so many numbers."""


def runs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether there is a native form for these tensors."""
    parameters = [weight] if bias is None else [weight, bias]
    return (
        asked_form() in ("auto", "native")
        and is_plain(x)
        and all(is_plain(each) and each.dtype is torch.float32 for each in parameters)
        and x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and (bias is None or bias.shape == weight.shape[:1])
        and x.numel() > 0
        and 0 < len(weight) <= MOST_OUTPUTS
        and weight.shape[1] % 16 == 0
        and native.has(f"narrow_conv3x3_{native.DTYPES.get(x.dtype)}")
    )


def narrow_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`conv3x3_reference` by the native form where there is one; differentiable in all three."""
    if runs(x, weight, bias) and not is_followed():
        return Convolution.apply(x, weight, bias, KERNEL)
    return conv3x3_reference(x, weight, bias)


def _columns(weight: Tensor) -> int:
    """Products are as wide as registers: what all taps make of a pixel, filled up with zeros."""
    return -(-TAPS * len(weight) // LANES) * LANES


KERNEL = Kernel("narrow_conv3x3", lambda side: side, lambda w: w.shape[1] * _columns(w))
