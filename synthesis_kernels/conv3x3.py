"""3×3 convolutions on a CPU by Winograd's algorithm (Lavin & Gray 2016), with fewer multiplications
than there are in them.

Convolutions are most of a synthesis step and of a student's, and on a CPU libraries run them near
the processor's rate (docs/log.md); less arithmetic is what is left. There are native forms only;
elsewhere the library's convolution runs.

In float32, `WinogradConvolutions` puts F(4×4, 3×3), a quarter of the multiplications where sides
are multiples of 4, where `F.conv2d` is asked for, with all gradients; forward, its error is about
five times that of the library's float32. It needs AVX2.

In bfloat16, `FrozenConv3x3` is F(2×2, 3×3), 4/9 of them, for networks that are not trained: it
rounds its transformed inputs and weights to bfloat16, which makes its error about 1.6 times that of
bfloat16 itself. It needs AVX-512 bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synthesis_kernels import native
from synthesis_kernels.backend import asked_form, pick_form

LEAST = 32
"""Channels on the narrower side from which it pays in bfloat16."""
LEAST_TILES = 32
"""Of 4×4 outputs in a batch, from which it pays in float32: the weights have to be transformed,
too. So a batch and a few of its images are not answered to the same bit.
"""
MOST_WEIGHTS = 256 * 256
"""Inputs times outputs up to which the gradient of the weights pays: 36 matrices of that size are
added to, tile by tile.
"""
MOST_SUMS = 16 * MOST_WEIGHTS
"""The same of all threads, each of which has its own: 150 MB."""
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
    return (
        mixed.reshape(16, inputs // 2, 2, outputs).transpose(2, 3).to(torch.bfloat16).contiguous()
    )


def pack_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """For the convolution, and for its gradient: the same with inputs and outputs exchanged and the
    kernel turned about.
    """
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
        for ours, packed in zip(
            (self.forward_weight, self.backward_weight), pack_weights(layer.weight), strict=True
        ):
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
        return native.as_channels(_winograd(native.as_rows(x), weight, bias))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        out = _winograd(
            native.as_rows(grad), weight, weight.new_zeros(weight.shape[2], dtype=torch.float32)
        )
        return native.as_channels(out), None, None, None


@torch.library.custom_op("echoset::conv3x3", mutates_args=())
def _winograd(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # (B, H, W, I) -> (B, H, W, O)
    batch, height, width, inputs = x.shape
    out = x.new_empty(batch, height, width, weight.shape[2])
    native.call(
        "conv3x3", x.dtype, x, weight, bias, out, batch, height, width, inputs, weight.shape[2]
    )
    return out


@_winograd.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:3], weight.shape[2])


class WinogradConvolutions(TorchFunctionMode):
    """Inside, the convolutions that any network asks for are `conv3x3` where it runs and pays."""

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.conv2d and not _followed() and (found := _fitting(*args, **(kwargs or {}))):
            return _Float32.apply(*found)
        return func(*args, **(kwargs or {}))


def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:  # (B, I, H, W), (O, I, 3, 3), (O,) -> (B, O, H, W)
    """`conv3x3_reference` in float32, by the native form where there is one; differentiable in all
    three.
    """
    return (
        _Float32.apply(x, weight, bias)
        if runs(x, weight, bias)
        else conv3x3_reference(x, weight, bias)
    )


def has_float32() -> bool:
    """Whether this processor has the form in float32, and no other was asked for."""
    return asked_form() in ("auto", "native") and hasattr(
        native.library() or object(), "conv3x3_float32"
    )


def runs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether there is a native form in float32 for these tensors, whatever it is worth."""
    given = [x, weight] if bias is None else [x, weight, bias]
    return (
        all(
            type(t) in (Tensor, nn.Parameter)
            and t.dtype is torch.float32
            and t.device.type == "cpu"
            for t in given
        )
        and all(t.layout is torch.strided for t in given)
        and x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and (bias is None or bias.shape == weight.shape[:1])
        and not any(width % 16 for width in weight.shape[:2])
        and has_float32()
    )


def _followed() -> bool:
    """Whether operations are recorded or cast by rules that know the library's only."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled("cpu")
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _fitting(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The tensors, if they make such a convolution and it pays; the parameters are those of
    `F.conv2d`.
    """
    ones = (1, (1, 1), [1, 1])
    if groups != 1 or stride not in ones or dilation not in ones or padding not in (*ones, "same"):
        return None
    return (input, weight, bias) if runs(input, weight, bias) and _enough(input) else None


def _enough(x: Tensor) -> bool:
    """Few tiles don't repay the transform of the weights, nor do those that lie half outside."""
    batch, _, height, width = x.shape
    tiles = -(-height // 4) * -(-width // 4)
    return batch * tiles >= LEAST_TILES and height * width >= 8 * tiles


class _Float32(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(
            x if ctx.needs_input_grad[1] else None, weight
        )  # the maps of a frozen network need not stay
        ctx.shape, ctx.biased = x.shape, bias is not None
        bias = weight.new_zeros(len(weight)) if bias is None else bias.contiguous()
        return native.as_channels(
            _convolve(native.as_rows(x), weight.permute(2, 3, 1, 0).contiguous(), bias)
        )

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        outputs, inputs = weight.shape[:2]

        def by_library(wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
            given = weight.new_zeros(()).expand(ctx.shape) if x is None else x
            sizes, ones = [outputs] if ctx.biased else None, [1, 1]
            return torch.ops.aten.convolution_backward(
                grad, given, weight, sizes, ones, ones, ones, False, [0, 0], 1, wanted
            )

        if torch.is_grad_enabled():  # to be differentiated again
            return by_library(ctx.needs_input_grad)
        rows, found = native.as_rows(grad), [None, None, None]
        if ctx.needs_input_grad[0]:
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).contiguous()
            found[0] = native.as_channels(_convolve(rows, turned, weight.new_zeros(inputs)))
        if ctx.needs_input_grad[1] and inputs * outputs <= MOST_WEIGHTS:
            found[1] = _weight_gradient(native.as_rows(x), rows).permute(3, 2, 0, 1)
        elif ctx.needs_input_grad[1]:
            found[1] = by_library((False, True, False))[1]
        if ctx.needs_input_grad[2]:
            found[2] = rows.sum((0, 1, 2))
        return tuple(found)


@torch.library.custom_op("echoset::conv3x3_float32", mutates_args=())
def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:  # (B, H, W, I), (3, 3, I, O), (O,) -> (B, H, W, O)
    inputs, outputs = weight.shape[2:]
    out, room = x.new_empty(*x.shape[:3], outputs), x.new_empty(36 * inputs * outputs)
    native.call("conv3x3", x.dtype, x, weight, bias, room, out, *x.shape, outputs)
    return out


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:3], weight.shape[3])


@torch.library.custom_op("echoset::conv3x3_weight_float32", mutates_args=())
def _weight_gradient(
    x: Tensor, grad: Tensor
) -> Tensor:  # (B, H, W, I), (B, H, W, O) -> (3, 3, I, O)
    size = x.shape[3] * grad.shape[3]
    team = min(
        torch.get_num_threads(), max(1, MOST_SUMS // size)
    )  # each of them adds up for itself
    out, room = x.new_empty(3, 3, x.shape[3], grad.shape[3]), x.new_empty(team, 36 * size)
    native.call("conv3x3_weight", x.dtype, x, grad, room, out, *x.shape, grad.shape[3], team)
    return out


@_weight_gradient.register_fake
def _(x: Tensor, grad: Tensor) -> Tensor:
    return x.new_empty(3, 3, x.shape[3], grad.shape[3])
