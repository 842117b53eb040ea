"""A frozen 3×3 convolution in bfloat16 by Winograd's algorithm: 2.25 times fewer multiplications than there are in it.

The convolutions of a frozen teacher, forward and backward to their input, are most of a synthesis step, and on a CPU
libraries run them near the processor's matrix rate; less arithmetic is what is left. F(2×2, 3×3) (Lavin & Gray 2016)
rounds its transformed inputs and weights to bfloat16, which makes its error about 1.6 times that of bfloat16 itself.
There is a native form only, for processors with AVX-512 bfloat16; elsewhere the library's convolution runs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form

LEAST = 32
"""Channels on the narrower side from which it pays."""
# Rows of G in U = G·g·Gᵀ.
_TRANSFORM = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def conv3x3_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Definition: stride 1, padding 1."""
    return F.conv2d(x, weight, bias, padding=1)


def pays(layer: nn.Module) -> bool:
    """Whether a layer is such a convolution, wide enough, and this processor has the form."""
    return (
        type(layer) is nn.Conv2d
        and (layer.kernel_size, layer.stride, layer.dilation) == ((3, 3), (1, 1), (1, 1))
        and layer.padding in ((1, 1), 1, "same")
        and (layer.groups, layer.padding_mode) == (1, "zeros")
        and min(layer.weight.shape[:2]) >= LEAST
        and not any(width % 16 for width in layer.weight.shape[:2])
        and layer.weight.device.type == "cpu"
        and hasattr(native.library() or object(), "conv3x3_bfloat16")
    )


def pack_weight(weight: Tensor) -> Tensor:  # (O, I, 3, 3) -> (16, I/2, O, 2) bfloat16
    """Transformed weights in the order the kernel reads them."""
    outputs, inputs = weight.shape[:2]
    transform = weight.new_tensor(_TRANSFORM, dtype=torch.float32)
    mixed = torch.einsum("ai,bj,ocij->abco", transform, transform, weight.detach().float())
    return mixed.reshape(16, inputs // 2, 2, outputs).transpose(2, 3).to(torch.bfloat16).contiguous()


def pack_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """For the convolution, and for its gradient: the same with inputs and outputs exchanged and the kernel turned about."""
    return pack_weight(weight), pack_weight(weight.transpose(0, 1).flip(2, 3))


class FrozenConv3x3(nn.Module):
    """Stands in for a convolution for which it `pays`; differentiable in its input."""

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
        for ours, packed in zip((self.forward_weight, self.backward_weight), pack_weights(layer.weight), strict=True):
            ours.copy_(packed)

    def forward(self, x: Tensor) -> Tensor:  # (B, I, H, W) -> (B, O, H, W) bfloat16
        x = x.to(torch.bfloat16)
        if pick_form(x) != "native":
            return conv3x3_reference(x, self.weight, self.bias.to(x.dtype))
        return _Convolution.apply(x, self.forward_weight, self.backward_weight, self.bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, backward_weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(backward_weight)
        return _winograd(x.movedim(1, -1).contiguous(), weight, bias).movedim(-1, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        rows = grad.movedim(1, -1).contiguous()
        out = _winograd(rows, weight, weight.new_zeros(weight.shape[2], dtype=torch.float32))
        return out.movedim(-1, 1), None, None, None


@torch.library.custom_op("echoset::conv3x3", mutates_args=())
def _winograd(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # (B, H, W, I) -> (B, H, W, O)
    batch, height, width, inputs = x.shape
    out = x.new_empty(batch, height, width, weight.shape[2])
    native.call("conv3x3", x.dtype, x, weight, bias, out, batch, height, width, inputs, weight.shape[2])
    return out


@_winograd.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:3], weight.shape[2])
