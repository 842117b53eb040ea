"""A BatchNorm in training together with what follows it: a sum, and a ReLU or LeakyReLU.

Each way takes two passes over the maps: one for sums over the batch, one that applies them. The
running statistics move on the way, and the count of batches with them. Nothing is kept for backward
but the input, two vectors and, behind a sum, the output; what the ReLU cut off is found again.

The moments are float32 or better whatever the input, and are taken around the batch's own first
value, because E[x²] − E[x]² cancels when |mean| ≫ std.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form
from synthesis_kernels.choices import Form


def bn_train_reference(
    x: Tensor,  # (B, C, *) any float type
    weight: Tensor,  # (C,) float32 or better, like the next three
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    slope: float | None = 0.0,
    residual: Tensor | None = None,  # (B, C, *)
    batches: Tensor | None = None,  # () int64
) -> Tensor:  # (B, C, *)
    """Definition: torch's BatchNorm in training, plus the residual, through a LeakyReLU of this
    slope below 0 (0: a ReLU; None: nothing).

    Changes the running statistics as BatchNorm does, and adds one to `batches`.
    """
    if batches is not None:
        batches.add_(1)
    y = F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    return activated(y, slope, residual)


def activated(y: Tensor, slope: float | None, residual: Tensor | None = None) -> Tensor:
    """What follows the BatchNorm."""
    if residual is not None:
        y = y + residual
    if slope is None:
        return y
    return F.leaky_relu(y, slope) if slope else F.relu(y)


def bn_train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    slope: float | None = 0.0,
    residual: Tensor | None = None,
    batches: Tensor | None = None,
) -> Tensor:
    """The same in two passes each way; differentiable in x, weight, bias and residual."""
    vectors = (weight, bias, running_mean, running_var)
    form = _form(x, vectors, residual)
    if form == "reference":
        return bn_train_reference(x, *vectors, momentum, eps, slope, residual, batches)
    kept = (running_mean, running_var, batches)
    leak = 1.0 if slope is None else slope
    numbers = (float(momentum), float(eps), float(leak))
    return _BatchNormTrain.apply(x, weight, bias, residual, kept, numbers, form)


def _form(x: Tensor, vectors: tuple[Tensor, ...], residual: Tensor | None) -> Form:
    """The form to run: torch's where types or places don't fit, or torch would refuse."""
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    fits = all(one.dtype is wide and one.is_contiguous() for one in vectors)
    if residual is not None:
        fits = fits and residual.dtype is x.dtype and residual.shape == x.shape
    if not fits or x.dtype not in native.DTYPES or x.numel() < 2 * x.shape[1]:
        return "reference"
    return pick_form(x)


class _BatchNormTrain(torch.autograd.Function):
    """Over rows of channels, in the native form or Triton's."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        kept: tuple[Tensor, Tensor, Tensor | None],  # running mean, running variance, batches
        numbers: tuple[float, float, float],  # momentum, eps, slope
        form: Form,
    ) -> Tensor:
        rows = native.as_rows(x)
        added = None if residual is None else native.as_rows(residual)
        run = _triton_forward if form == "triton" else _native_forward
        y, mean, invstd = run(rows, added, weight, bias, kept, numbers)
        y = native.as_channels(y)
        told = None if residual is None else y
        ctx.save_for_backward(x, weight, bias, told, mean, invstd)
        ctx.eps, ctx.slope = numbers[1:]
        ctx.form = form
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # to be differentiated again
            return _library_gradients(ctx, grad)
        x, weight, bias, y, mean, invstd = ctx.saved_tensors
        rows = native.as_rows(x)
        grad = native.as_rows(grad.to(x.dtype))
        told = None if y is None else native.as_rows(y)
        vectors = (mean, invstd, weight, bias)
        run = _triton_backward if ctx.form == "triton" else _native_backward
        to_x, to_weight, to_bias, to_residual = run(rows, grad, told, vectors, ctx.slope)
        if to_residual is not None:
            to_residual = to_residual.movedim(-1, 1)
        return to_x.movedim(-1, 1), to_weight, to_bias, to_residual, None, None, None


def _library_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """All gradients in torch's own, differentiable operations."""
    x, weight, bias, y = ctx.saved_tensors[:4]
    normed = F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
    told = normed if y is None else y
    grad = torch.where(told > 0, grad, grad * ctx.slope)
    inputs = (x, weight, bias)
    wanted = [one for one, asked in zip(inputs, ctx.needs_input_grad, strict=False) if asked]
    given = iter(torch.autograd.grad(normed, wanted, grad, create_graph=True) if wanted else ())
    to_inputs = [next(given) if asked else None for asked in ctx.needs_input_grad[:3]]
    return *to_inputs, grad if ctx.needs_input_grad[3] else None, None, None, None


def _native_forward(
    rows: Tensor,  # (*, C) contiguous, like the residual
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    kept: tuple[Tensor, Tensor, Tensor | None],
    numbers: tuple[float, float, float],
) -> tuple[Tensor, Tensor, Tensor]:  # (*, C), (C,), (C,)
    momentum, eps, slope = numbers
    running_mean, running_var, batches = kept
    sizes = (rows.numel() // rows.shape[-1], rows.shape[-1])
    y = empty_as(rows)
    mean, invstd = empty_as(weight), empty_as(weight)
    moved = (running_mean, running_var, _or_none(batches))
    native.call("bn_train_moments", rows.dtype, rows, mean, invstd, *moved, *sizes, momentum, eps)
    vectors = (mean, invstd, weight, bias)
    added = _or_none(residual)
    native.call("bn_train_apply", rows.dtype, rows, added, y, *vectors, *sizes, slope)
    return y, mean, invstd


def _native_backward(
    rows: Tensor,  # (*, C) contiguous, like the next two
    grad: Tensor,
    y: Tensor | None,  # the output, where there was a residual
    vectors: tuple[Tensor, ...],  # (C,) each: mean, invstd, weight, bias
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    weight = vectors[2]
    sizes = (rows.numel() // rows.shape[-1], rows.shape[-1])
    sums = (empty_as(weight), empty_as(weight))
    to_x = empty_as(rows)
    to_residual = None if y is None else empty_as(rows)
    told = _or_none(y)
    native.call("bn_train_sums", rows.dtype, rows, grad, told, *vectors, *sums, *sizes, slope)
    outputs = (to_x, _or_none(to_residual))
    native.call(
        "bn_train_gradient", rows.dtype, rows, grad, told, *outputs, *vectors, *sums, *sizes, slope
    )
    return to_x, *sums, to_residual


def empty_as(tensor: Tensor) -> Tensor:
    """Contiguous memory for as much."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _or_none(tensor: Tensor | None) -> Tensor | int:
    """A tensor as the library takes it, or no address."""
    return 0 if tensor is None else tensor


def _triton_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from synthesis_kernels.triton_forms.bn_train import forward

    return forward(*arguments)


def _triton_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    from synthesis_kernels.triton_forms.bn_train import backward

    return backward(*arguments)
