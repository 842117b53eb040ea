"""3×3 convolutions on a CPU by Winograd's method (Lavin & Gray 2016): F(4×4, 3×3) in float32, a
quarter of the multiplications where sides are multiples of 4; F(2×2, 3×3) in bfloat16, 4/9 of them.

Convolutions are most of a synthesis step and of a student's, and on a CPU libraries run them near
the processor's rate (docs/log.md); less arithmetic is what is left. `WinogradConvolutions` puts
this one, with all its gradients, where `F.conv2d` is asked for. Forward, its error is about five
times that of the library's float32, and 1.6 times that of bfloat16. There is a native form only,
for AVX2, in bfloat16 for AVX-512 bfloat16; elsewhere the library's convolution runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synthesis_kernels import native
from synthesis_kernels.backend import asked_form
from synthesis_kernels.native_conv import Convolution, gradient_sums

SIDE = {torch.float32: 4, torch.bfloat16: 2}
"""Of a tile of outputs."""
PLACES = {torch.float32: 36, torch.bfloat16: 16}
"""Products that a tile is made by."""
LEAST_TILES = {torch.float32: 32, torch.bfloat16: 128}
"""Tiles in a batch from which it pays: the weights have to be transformed, too. So a batch and a
few of its images are not answered to the same bit.
"""
MOST_WEIGHTS = 256 * 256
"""Inputs times outputs up to which the gradient of the weights pays: as many matrices of that size
as there are products are added to, tile by tile.
"""


def conv3x3_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Definition: stride 1, padding 1."""
    return F.conv2d(x, weight, bias, padding=1)


def conv3x3(
    x: Tensor,  # (B, I, H, W) float32 or bfloat16
    weight: Tensor,  # (O, I, 3, 3) float32, like the bias
    bias: Tensor | None = None,  # (O,)
) -> Tensor:  # (B, O, H, W) as x
    """`conv3x3_reference` by the native form where there is one; differentiable in all three."""
    if runs(x, weight, bias) and not is_followed():
        return _Winograd.apply(x, weight, bias)
    weight = weight.to(x.dtype)
    return conv3x3_reference(x, weight, None if bias is None else bias.to(x.dtype))


class WinogradConvolutions(TorchFunctionMode):
    """Inside, the convolutions that any network asks for are `conv3x3`, `narrow_conv3x3` or
    `strided_conv`, where one of them runs and pays.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = kwargs or {}
        if func is F.conv2d and not is_followed():
            found = _form_that_fits(*args, **keywords)
            if found is not None:
                form, tensors = found
                return form.apply(*tensors)
        return func(*args, **keywords)


def has(precision: torch.dtype) -> bool:
    """Whether this processor has the form in this precision, and no other was asked for."""
    if asked_form() not in ("auto", "native") or precision not in SIDE:
        return False
    return native.has(f"conv3x3_{native.DTYPES[precision]}")


def runs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether there is a native form for these tensors, whatever it is worth."""
    parameters = [weight] if bias is None else [weight, bias]
    return (
        is_plain(x)
        and all(is_plain(each) and each.dtype is torch.float32 for each in parameters)
        and x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and (bias is None or bias.shape == weight.shape[:1])
        and all(width % 16 == 0 for width in weight.shape[:2])
        and has(x.dtype)
    )


def can_add(residual: Tensor, x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels can add it to such a convolution's output."""
    shape = (len(x), len(weight), *x.shape[2:])
    return is_plain(residual) and residual.dtype is x.dtype and residual.shape == shape


def has_layer(layer: nn.Module, precision: torch.dtype) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is such a convolution, and the form is here."""
    return (
        type(layer) is nn.Conv2d
        and is_square(layer)
        and layer.weight.device.type == "cpu"
        and all(width % 16 == 0 for width in layer.weight.shape[:2])
        and has(precision)
    )


def is_square(layer: nn.Conv2d, side: int = 3, stride: int = 1) -> bool:
    """Whether it is a plain convolution of this side that sees as far to the left as to the
    right.
    """
    around = (side // 2, side // 2)
    return (
        layer.kernel_size == (side, side)
        and layer.stride == (stride, stride)
        and layer.dilation == (1, 1)
        and (layer.padding == around or (layer.padding == "same" and stride == 1))
        and layer.padding_mode == "zeros"
        and layer.groups == 1
    )


def is_plain(tensor: Tensor) -> bool:
    """Whether the memory behind a tensor is numbers of a CPU."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
    )


def is_followed() -> bool:
    """Whether operations are recorded or transformed by rules that know the library's only."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]  # torch's stub leaves it out
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


@native.unwatched
def _form_that_fits(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[type[torch.autograd.Function], tuple[Any, ...]] | None:
    """The form, if one of ours makes such a convolution and pays, and what it takes, cast as
    autocast asks; the parameters are those of `F.conv2d`.
    """
    from synthesis_kernels import narrow_conv3x3, strided_conv

    step = _one(stride)
    side = _one(weight.shape[2:])
    if groups != 1 or _one(dilation) != 1 or side not in (1, 3) or weight.shape[1] % 16:
        return None
    if _one(padding) != side // 2 and (padding != "same" or step != 1):
        return None
    if torch.is_autocast_enabled("cpu"):
        if torch.get_autocast_dtype("cpu") is not torch.bfloat16:
            return None
        if input.dtype is torch.float32:
            input = input.to(torch.bfloat16)
    tensors = (input, weight, bias)
    if step == 1 and runs(*tensors) and pays(input, weight):
        return _Winograd, tensors
    if step == 1 and narrow_conv3x3.runs(*tensors):
        return Convolution, (*tensors, narrow_conv3x3.KERNEL)
    kernel = strided_conv.find_kernel(*tensors) if step == 2 else None
    return None if kernel is None else (Convolution, (*tensors, kernel))


def _one(value: int | str | Sequence[int]) -> int | None:
    """The number that is meant for both axes; None where there is none."""
    if isinstance(value, int):
        return value
    if isinstance(value, str) or len(set(value)) != 1:
        return None
    return value[0]


def pays(x: Tensor, weight: Tensor) -> bool:
    """Few tiles don't repay the transform of the weights, nor do those that lie half outside."""
    batch, _, height, width = x.shape
    side = SIDE[x.dtype]
    tiles = -(-height // side) * -(-width // side)
    return batch * tiles >= LEAST_TILES[x.dtype] and 2 * height * width >= side**2 * tiles


class _Winograd(native.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The maps of a frozen network need not stay. Kept is the input itself: second derivatives
        # lead to it.
        kept = x if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(kept, weight)
        ctx.shape = x.shape
        ctx.has_bias = bias is not None
        return native.as_channels(_convolve(native.as_rows(x), weight, bias))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return library_gradients(ctx, grad, ctx.needs_input_grad)
        grad_rows = native.as_rows(grad)
        to_x: Tensor | None = None
        to_weight: Tensor | None = None
        to_bias: Tensor | None = None
        if ctx.needs_input_grad[0]:
            to_x = native.as_channels(_convolve(grad_rows, weight, None, turned=True))
        if ctx.needs_input_grad[1]:
            if weight.shape[0] * weight.shape[1] <= MOST_WEIGHTS:
                to_weight = _weight_gradient(native.as_rows(x), grad_rows, weight)
            else:
                to_weight = library_gradients(ctx, grad, (False, True, False))[1]
        if ctx.needs_input_grad[2]:
            to_bias = native.channel_sums(grad_rows)
        return to_x, to_weight, to_bias


def library_gradients(ctx: Any, grad: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The wanted ones of the gradients of input, weight and bias, in the library's form."""
    x, weight = ctx.saved_tensors
    if x is None:  # the weight's gradient is not wanted then, and only the shape counts
        x = grad.new_zeros(()).expand(ctx.shape)
    bias_sizes = [len(weight)] if ctx.has_bias else None
    ones = [1, 1]
    cast = weight.to(grad.dtype)
    to_x, to_weight, to_bias = torch.ops.aten.convolution_backward(
        grad, x, cast, bias_sizes, ones, ones, ones, False, [0, 0], 1, wanted
    )
    return (
        to_x,
        to_weight.to(weight.dtype) if wanted[1] else None,
        to_bias.to(weight.dtype) if wanted[2] else None,
    )


def _convolve(
    rows: Tensor,  # (B, H, W, I)
    weight: Tensor,  # (O, I, 3, 3); (I, O, 3, 3) where it is turned about, for the gradient
    bias: Tensor | None,  # (O,)
    turned: bool = False,
) -> Tensor:  # (B, H, W, O)
    outputs = weight.shape[1 if turned else 0]
    out = rows.new_empty(*rows.shape[:3], outputs)
    if bias is not None:
        bias = bias.contiguous()
    scale = shift = sums = residual = None
    given = (rows, scale, shift, sums, native.Memory(weight), bias, residual)
    sizes = (*rows.shape, outputs, *weight.stride())
    relu = False
    packs = True
    groups = 1
    channels = 0  # of moments, which nobody asks for
    rest = (turned, relu, packs, groups, channels)
    native.call("conv3x3", rows.dtype, *given, packed_room(rows, weight), out, *sizes, *rest)
    return out


def packed_room(rows: Tensor, weight: Tensor) -> Tensor:
    """Room for the weights as the kernels read them."""
    return rows.new_empty(PLACES[rows.dtype] * weight.shape[0] * weight.shape[1])


def _weight_gradient(
    rows: Tensor,  # (B, H, W, I)
    grad_rows: Tensor,  # (B, H, W, O)
    weight: Tensor,  # (O, I, 3, 3)
) -> Tensor:  # as the weight
    out = torch.empty_like(weight)
    sums, team = gradient_sums(PLACES[rows.dtype] * len(weight) * weight.shape[1], weight)
    given = (rows, grad_rows, sums, native.Memory(out))
    sizes = (*rows.shape, len(weight), *out.stride(), team)
    native.call("conv3x3_weight", rows.dtype, *given, *sizes)
    return out
