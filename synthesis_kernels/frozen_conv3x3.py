"""3×3 convolutions in bfloat16 on a CPU, for networks that are not trained: Winograd's F(2×2, 3×3)
(Lavin & Gray 2016), 4/9 of the multiplications.

It rounds its transformed inputs and weights to bfloat16, which makes its error about 1.6 times that
of bfloat16 itself. There is a native form only, for AVX-512 bfloat16; elsewhere the library's
convolution runs.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form
from synthesis_kernels.conv3x3 import conv3x3_reference

LEAST = 32
"""Channels on the narrower side from which it pays."""
# Rows of G in U = G·g·Gᵀ.
_TRANSFORM = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def pays(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is such a convolution, wide enough, and this processor has the form."""
    if type(layer) is not nn.Conv2d or not _keeps_the_size(layer):
        return False
    widths = layer.weight.shape[:2]
    return (
        min(widths) >= LEAST
        and all(width % 16 == 0 for width in widths)
        and layer.weight.device.type == "cpu"
        and native.has("conv3x3_bfloat16")
    )


def _keeps_the_size(layer: nn.Conv2d) -> bool:
    """Whether it is a plain 3×3 convolution with stride 1 and one row of zeros around the map."""
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == (1, 1)
        and layer.dilation == (1, 1)
        and layer.padding in ((1, 1), 1, "same")
        and layer.padding_mode == "zeros"
        and layer.groups == 1
    )


def pack_weight(weight: Tensor) -> Tensor:  # (O, I, 3, 3) -> (16, I/2, O, 2) bfloat16
    """Transformed weights in the order the kernel reads them."""
    outputs, inputs = weight.shape[:2]
    transform = weight.new_tensor(_TRANSFORM, dtype=torch.float32)
    mixed = torch.einsum("ai,bj,ocij->abco", transform, transform, weight.detach().float())
    pairs = mixed.reshape(16, inputs // 2, 2, outputs).transpose(2, 3)
    return pairs.to(torch.bfloat16).contiguous()


def pack_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """For the convolution, and for its gradient: the same with inputs and outputs exchanged and the
    kernel turned about.
    """
    return pack_weight(weight), pack_weight(weight.transpose(0, 1).flip(2, 3))


class FrozenConv3x3(nn.Module):
    """Stands in for a convolution for which it `pays`; differentiable in its input."""

    weight: Tensor
    bias: Tensor
    forward_weight: Tensor
    backward_weight: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().to(torch.bfloat16))
        self.register_buffer("bias", layer.weight.new_zeros(len(layer.weight)))
        forward, backward = pack_weights(layer.weight)
        self.register_buffer("forward_weight", forward)
        self.register_buffer("backward_weight", backward)
        self.take(layer)

    @torch.no_grad()
    def take(self, layer: nn.Conv2d) -> None:
        """Take over the layer's present weights."""
        self.weight.copy_(layer.weight)
        if layer.bias is not None:
            self.bias.copy_(layer.bias)
        forward, backward = pack_weights(layer.weight)
        self.forward_weight.copy_(forward)
        self.backward_weight.copy_(backward)

    def forward(self, x: Tensor) -> Tensor:  # (B, I, H, W) -> (B, O, H, W) bfloat16
        x = x.to(torch.bfloat16)
        if pick_form(x) != "native":
            return conv3x3_reference(x, self.weight, self.bias.to(x.dtype))
        return _Convolution.apply(x, self.forward_weight, self.backward_weight, self.bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, backward_weight: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(backward_weight)
        return native.as_channels(_winograd(native.as_rows(x), weight, bias))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        no_bias = weight.new_zeros(weight.shape[2], dtype=torch.float32)
        to_x = _winograd(native.as_rows(grad), weight, no_bias)
        return native.as_channels(to_x), None, None, None


@torch.library.custom_op("echoset::conv3x3", mutates_args=())
def _winograd(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # (B, H, W, I) -> (B, H, W, O)
    outputs = weight.shape[2]
    out = x.new_empty(*x.shape[:3], outputs)
    native.call("conv3x3", x.dtype, x, weight, bias, out, *x.shape, outputs)
    return out


@_winograd.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:3], weight.shape[2])
