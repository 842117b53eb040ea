"""`conv3x3` for networks that are not trained: weights are transformed once, and not at every step.

There is a native form in bfloat16 only; in float32, and where the processor has none, a frozen
network's convolutions run as any other's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form
from synthesis_kernels.conv3x3 import PLACES, conv3x3_reference, has

PRECISION = torch.bfloat16


def pack_weight(weight: Tensor, packed: Tensor, turned: bool = False) -> None:
    """Transform weights, (O, I, 3, 3), in the order the kernel reads them; turned about, they are
    those of the gradient.
    """
    weight = weight.detach().float()
    outputs, inputs = weight.shape[:2]
    sizes = (inputs, outputs, *weight.stride(), turned)
    native.call("conv3x3_pack", packed.dtype, native.Memory(weight), packed, *sizes)


class FrozenConv3x3(nn.Module):
    """Stands in for a convolution for which it `pays`; differentiable in its input."""

    weight: Tensor
    bias: Tensor | None
    forward_weight: Tensor
    backward_weight: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.register_buffer("weight", weight.to(PRECISION))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())
        size = PLACES[PRECISION] * weight.shape[0] * weight.shape[1]
        self.register_buffer("forward_weight", weight.new_empty(size, dtype=PRECISION))
        self.register_buffer("backward_weight", weight.new_empty(size, dtype=PRECISION))
        self.take(layer)

    @torch.no_grad()
    def take(self, layer: nn.Conv2d) -> None:
        """Take over the layer's present weights."""
        self.weight.copy_(layer.weight)
        if self.bias is not None and layer.bias is not None:
            self.bias.copy_(layer.bias)
        pack_weight(layer.weight, self.forward_weight)
        pack_weight(layer.weight, self.backward_weight, turned=True)

    def forward(self, x: Tensor) -> Tensor:  # (B, I, H, W) -> (B, O, H, W) bfloat16
        x = x.to(PRECISION)
        if pick_form(x) != "native" or not has(PRECISION):
            bias = None if self.bias is None else self.bias.to(PRECISION)
            return conv3x3_reference(x, self.weight, bias)
        return _Convolution.apply(
            x, self.forward_weight, self.backward_weight, self.bias, len(self.weight)
        )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        backward_weight: Tensor,
        bias: Tensor | None,
        outputs: int,
    ) -> Tensor:
        ctx.save_for_backward(backward_weight)
        ctx.inputs = x.shape[1]
        return native.as_channels(_winograd(native.as_rows(x), weight, bias, outputs))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        to_x = _winograd(native.as_rows(grad), weight, None, ctx.inputs)
        return native.as_channels(to_x), None, None, None, None


def _winograd(
    rows: Tensor,  # (B, H, W, I)
    weight: Tensor,
    bias: Tensor | None,
    outputs: int,
) -> Tensor:  # (B, H, W, O)
    out = rows.new_empty(*rows.shape[:3], outputs)
    no_norm = (None, None, None, None)
    given = (rows, *no_norm, weight, bias, None, out)
    native.call("conv3x3", rows.dtype, *given, *rows.shape, outputs, False)
    return out
