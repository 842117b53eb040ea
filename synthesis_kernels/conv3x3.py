"""3×3 convolutions in float32 on a CPU by Winograd's F(4×4, 3×3) (Lavin & Gray 2016): a quarter of
the multiplications where sides are multiples of 4.

Convolutions are most of a synthesis step and of a student's, and on a CPU libraries run them near
the processor's rate (docs/log.md); less arithmetic is what is left. `WinogradConvolutions` puts
this one, with all its gradients, where `F.conv2d` is asked for. Forward, its error is about five
times that of the library's float32. There is a native form only, for AVX2; elsewhere the library's
convolution runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synthesis_kernels import native
from synthesis_kernels.backend import asked_form

LEAST_TILES = 32
"""Of 4×4 outputs in a batch, from which it pays: the weights have to be transformed, too. So a
batch and a few of its images are not answered to the same bit.
"""
MOST_WEIGHTS = 256 * 256
"""Inputs times outputs up to which the gradient of the weights pays: 36 matrices of that size are
added to, tile by tile.
"""
MOST_SUMS = 16 * MOST_WEIGHTS
"""The same of all threads, each of which has its own: 150 MB."""


def conv3x3_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Definition: stride 1, padding 1."""
    return F.conv2d(x, weight, bias, padding=1)


def conv3x3(
    x: Tensor,  # (B, I, H, W)
    weight: Tensor,  # (O, I, 3, 3)
    bias: Tensor | None = None,  # (O,)
) -> Tensor:  # (B, O, H, W)
    """`conv3x3_reference` in float32, by the native form where there is one; differentiable in all
    three.
    """
    if runs(x, weight, bias):
        return _Winograd.apply(x, weight, bias)
    return conv3x3_reference(x, weight, bias)


class WinogradConvolutions(TorchFunctionMode):
    """Inside, the convolutions that any network asks for are `conv3x3` where it runs and pays."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = kwargs or {}
        if func is F.conv2d and not _is_followed():
            tensors = _tensors_that_fit(*args, **keywords)
            if tensors is not None:
                return _Winograd.apply(*tensors)
        return func(*args, **keywords)


def has_float32() -> bool:
    """Whether this processor has the form in float32, and no other was asked for."""
    return asked_form() in ("auto", "native") and native.has("conv3x3_float32")


def runs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether there is a native form in float32 for these tensors, whatever it is worth."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    return (
        all(_is_plain(tensor) for tensor in tensors)
        and x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and (bias is None or bias.shape == weight.shape[:1])
        and all(width % 16 == 0 for width in weight.shape[:2])
        and has_float32()
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether the memory behind a tensor is float32 numbers of a CPU."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.dtype is torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
    )


def _is_followed() -> bool:
    """Whether operations are recorded, cast or transformed by rules that know the library's
    only.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]  # torch's stub leaves it out
        or torch.is_autocast_enabled("cpu")
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _tensors_that_fit(
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
    if not (runs(input, weight, bias) and _has_enough_tiles(input)):
        return None
    return input, weight, bias


def _has_enough_tiles(x: Tensor) -> bool:
    """Few tiles don't repay the transform of the weights, nor do those that lie half outside."""
    batch, _, height, width = x.shape
    tiles = -(-height // 4) * -(-width // 4)
    return batch * tiles >= LEAST_TILES and height * width >= 8 * tiles


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The maps of a frozen network need not stay.
        kept = x if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(kept, weight)
        ctx.shape = x.shape
        ctx.has_bias = bias is not None
        bias = weight.new_zeros(len(weight)) if bias is None else bias.contiguous()
        kernel = weight.permute(2, 3, 1, 0).contiguous()
        return native.as_channels(_convolve(native.as_rows(x), kernel, bias))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return _library_gradients(ctx, grad, ctx.needs_input_grad)
        rows = native.as_rows(grad)
        to_x: Tensor | None = None
        to_weight: Tensor | None = None
        to_bias: Tensor | None = None
        if ctx.needs_input_grad[0]:
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).contiguous()
            no_bias = weight.new_zeros(weight.shape[1])
            to_x = native.as_channels(_convolve(rows, turned, no_bias))
        if ctx.needs_input_grad[1]:
            if weight.shape[0] * weight.shape[1] <= MOST_WEIGHTS:
                to_weight = _weight_gradient(native.as_rows(x), rows).permute(3, 2, 0, 1)
            else:
                to_weight = _library_gradients(ctx, grad, (False, True, False))[1]
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum((0, 1, 2))
        return to_x, to_weight, to_bias


def _library_gradients(ctx: Any, grad: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The wanted ones of the gradients of input, weight and bias, in the library's form."""
    x, weight = ctx.saved_tensors
    if x is None:  # then the weight's gradient is not wanted, and only the shape counts
        x = weight.new_zeros(()).expand(ctx.shape)
    bias_sizes = [len(weight)] if ctx.has_bias else None
    ones = [1, 1]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, bias_sizes, ones, ones, ones, False, [0, 0], 1, wanted
    )


@torch.library.custom_op("echoset::conv3x3_float32", mutates_args=())
def _convolve(
    x: Tensor,  # (B, H, W, I)
    weight: Tensor,  # (3, 3, I, O)
    bias: Tensor,  # (O,)
) -> Tensor:  # (B, H, W, O)
    inputs, outputs = weight.shape[2:]
    out = x.new_empty(*x.shape[:3], outputs)
    packed = x.new_empty(36 * inputs * outputs)
    native.call("conv3x3", x.dtype, x, weight, bias, packed, out, *x.shape, outputs)
    return out


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:3], weight.shape[3])


@torch.library.custom_op("echoset::conv3x3_weight_float32", mutates_args=())
def _weight_gradient(
    x: Tensor,  # (B, H, W, I)
    grad: Tensor,  # (B, H, W, O)
) -> Tensor:  # (3, 3, I, O)
    inputs = x.shape[3]
    outputs = grad.shape[3]
    # Each of the team adds up for itself.
    team = min(torch.get_num_threads(), max(1, MOST_SUMS // (inputs * outputs)))
    out = x.new_empty(3, 3, inputs, outputs)
    sums = x.new_empty(team, 36 * inputs * outputs)
    native.call("conv3x3_weight", x.dtype, x, grad, sums, out, *x.shape, outputs, team)
    return out


@_weight_gradient.register_fake
def _(x: Tensor, grad: Tensor) -> Tensor:
    return x.new_empty(3, 3, x.shape[3], grad.shape[3])
