"""3×3 convolutions on a CPU by Winograd's algorithm (Lavin & Gray 2016), with fewer multiplications than there are in them.

Convolutions are most of a synthesis step and of a student's, and on a CPU libraries run them near the processor's rate; less
arithmetic is what is left. There are native forms only; elsewhere the library's convolution runs.

In float32, `WinogradConvolutions` puts F(4×4, 3×3), a quarter of the multiplications, where `F.conv2d` is asked for, with
both gradients; its error is about five times that of float32 itself. It needs AVX2.

In bfloat16, `FrozenConv3x3` is F(2×2, 3×3), 4/9 of them, for networks that are not trained: it rounds its transformed inputs and
weights to bfloat16, which makes its error about 1.6 times that of bfloat16 itself. It needs AVX-512 bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form

LEAST = 32
"""Channels on the narrower side from which it pays in bfloat16."""
LEAST_TILES = 32
"""Of 4×4 outputs in a batch, from which it pays in float32: the weights have to be transformed, too."""
MOST_WEIGHTS = 256 * 256
"""Inputs times outputs up to which the gradient of the weights pays: each thread adds up 36 matrices of that size."""
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


class WinogradConvolutions(TorchFunctionMode):
    """Inside, `conv3x3` runs what it can of the convolutions that any network asks for."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d and not torch.jit.is_tracing() and (found := _fitting(*args, **(kwargs or {}))):
            return conv3x3(*found)
        return func(*args, **(kwargs or {}))


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # (B, I, H, W), (O, I, 3, 3), (O,) -> (B, O, H, W)
    """`conv3x3_reference` in float32, where the native form runs; differentiable in all three."""
    return _Float32.apply(x, weight, bias) if _runs(x, weight) else conv3x3_reference(x, weight, bias)


def _fitting(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The tensors of such a convolution, if it is one that pays."""
    ones = (1, (1, 1), [1, 1])
    if groups != 1 or stride not in ones or dilation not in ones or padding not in (*ones, "same"):
        return None
    return (input, weight, bias) if _runs(input, weight) and _enough(input) else None


def _runs(x: Tensor, weight: Tensor) -> bool:
    plain = all(type(t) in (Tensor, nn.Parameter) and t.dtype is torch.float32 and t.device.type == "cpu" for t in (x, weight))
    return (
        plain
        and x.ndim == 4
        and weight.shape[2:] == (3, 3)
        and not any(width % 16 for width in weight.shape[:2])
        and pick_form(x, ("reference", "native")) == "native"
        and hasattr(native.library(), "conv3x3_float32")
    )


def _enough(x: Tensor) -> bool:
    """Few tiles don't repay the transform of the weights, nor do those that lie half outside."""
    batch, _, height, width = x.shape
    tiles = -(-height // 4) * -(-width // 4)
    return batch * tiles >= LEAST_TILES and height * width >= 8 * tiles


class _Float32(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        return _convolve(_rows(x), weight.permute(2, 3, 1, 0).contiguous(), bias).movedim(-1, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted, outputs, inputs = ctx.needs_input_grad, *weight.shape[:2]
        if torch.is_grad_enabled() or not grad.numel():  # to be differentiated again
            sizes = [outputs] if ctx.biased else None
            found = torch.ops.aten.convolution_backward(grad, x, weight, sizes, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted)
            return tuple(found)
        rows = _rows(grad)
        to_input = to_weight = to_bias = None
        if wanted[0]:
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).contiguous()
            to_input = _convolve(rows, turned, weight.new_zeros(inputs)).movedim(-1, 1)
        if wanted[1] and inputs * outputs <= MOST_WEIGHTS:
            to_weight = _weight_gradient(_rows(x), rows).permute(3, 2, 0, 1)
        elif wanted[1]:
            to_weight = torch.nn.grad.conv2d_weight(x, weight.shape, grad, padding=1)
        if wanted[2]:
            to_bias = rows.sum((0, 1, 2))
        return to_input, to_weight, to_bias


def _rows(x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, H, W, C)
    return x.movedim(1, -1).contiguous()


@torch.library.custom_op("echoset::conv3x3_float32", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # (B, H, W, I), (3, 3, I, O), (O,) -> (B, H, W, O)
    out = x.new_empty(*x.shape[:3], len(bias))
    native.call("conv3x3", x.dtype, x, weight, bias.contiguous(), out, *x.shape, len(bias))
    return out


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:3], len(bias))


@torch.library.custom_op("echoset::conv3x3_weight_float32", mutates_args=())
def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:  # (B, H, W, I), (B, H, W, O) -> (3, 3, I, O)
    out = x.new_empty(3, 3, x.shape[3], grad.shape[3])
    native.call("conv3x3_weight", x.dtype, x, grad, out, *x.shape, grad.shape[3])
    return out


@_weight_gradient.register_fake
def _(x: Tensor, grad: Tensor) -> Tensor:
    return x.new_empty(3, 3, x.shape[3], grad.shape[3])
