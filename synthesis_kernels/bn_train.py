"""A BatchNorm in training together with what follows it, a sum and a ReLU or LeakyReLU, and perhaps
with the sum before it.

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
    numbers = (momentum, eps, slope)
    return _BatchNormTrain.apply(x, None, weight, bias, residual, kept, numbers, form)[0]


def bn_train_sum(
    x: Tensor,  # (B, C, *), like the branch
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    slope: float | None = 0.0,
    batches: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # (B, C, *) twice
    """x + branch, and `bn_train` of it: the sum is made on the way, and so is that of both
    gradients. Nobody may change the sum in place.
    """
    vectors = (weight, bias, running_mean, running_var)
    form = _form(x, vectors, branch)
    if form == "reference":
        total = x + branch
        y = bn_train_reference(total, *vectors, momentum, eps, slope, batches=batches)
        return total, y
    kept = (running_mean, running_var, batches)
    numbers = (momentum, eps, slope)
    y, total = _BatchNormTrain.apply(x, branch, weight, bias, None, kept, numbers, form)
    return total, y


@native.unwatched
def _form(x: Tensor, vectors: tuple[Tensor, ...], other: Tensor | None) -> Form:
    """The form to run: torch's where types or places don't fit, or torch would refuse."""
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    fits = all(one.dtype is wide and one.is_contiguous() for one in vectors)
    fits = fits and all(one.shape == x.shape[1:2] for one in vectors)
    if other is not None:
        fits = fits and other.dtype is x.dtype and other.shape == x.shape
    if not fits or x.dtype not in native.DTYPES or x.numel() < 2 * x.shape[1]:
        return "reference"
    return pick_form(x)


class _BatchNormTrain(native.Function):
    """Over rows of channels, in the native form or Triton's: the output, and the sum of x and the
    branch where there is one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        kept: tuple[Tensor, Tensor, Tensor | None],  # running mean, running variance, batches
        numbers: tuple[float, float, float | None],  # momentum, eps, slope
        form: Form,
    ) -> tuple[Tensor, Tensor | None]:
        momentum, eps, slope = numbers
        leak = 1.0 if slope is None else float(slope)
        run = _triton_forward if form == "triton" else _native_forward
        maps = (native.as_rows(x), _rows(branch), _rows(residual))
        floats = (float(momentum), float(eps), leak)
        y, total, mean, invstd = run(maps, weight, bias, kept, floats)
        y = native.as_channels(y)
        if total is not None:
            total = native.as_channels(total)
        seen = x if total is None else total
        told = None if residual is None else y
        ctx.save_for_backward(seen, weight, bias, told, mean, invstd)
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        ctx.slope = leak
        ctx.form = form
        return y, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, passed: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, bias, y, mean, invstd = ctx.saved_tensors
        if grad is None:  # the sum alone was used
            grad = torch.zeros_like(x)
        if torch.is_grad_enabled():  # to be differentiated again
            return _library_gradients(ctx, grad, passed)
        if passed is not None:
            passed = native.as_rows(passed.to(x.dtype))
        maps = (native.as_rows(x), native.as_rows(grad.to(x.dtype)), _rows(y), passed)
        run = _triton_backward if ctx.form == "triton" else _native_backward
        rows, to_weight, to_bias, residual = run(maps, (mean, invstd, weight, bias), ctx.slope)
        to_x = rows.movedim(-1, 1)
        to_branch = to_x if ctx.needs_input_grad[1] else None
        to_residual = None if residual is None else residual.movedim(-1, 1)
        return to_x, to_branch, to_weight, to_bias, to_residual, None, None, None


def _library_gradients(ctx: Any, grad: Tensor, passed: Tensor | None) -> tuple[Tensor | None, ...]:
    """All gradients in torch's own, differentiable operations."""
    # As views: x may be the sum, which depends on this very function.
    x, weight, bias = [one.view_as(one) for one in ctx.saved_tensors[:3]]
    y = ctx.saved_tensors[3]
    to_maps, to_branch, to_weight, to_bias, to_residual = ctx.needs_input_grad[:5]
    normed = F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
    told = normed if y is None else y
    grad = torch.where(told > 0, grad, grad * ctx.slope)
    asked = {"x": to_maps or to_branch, "weight": to_weight, "bias": to_bias}
    inputs = {"x": x, "weight": weight, "bias": bias}
    wanted = [inputs[name] for name in inputs if asked[name]]
    found = torch.autograd.grad(normed, wanted, grad, create_graph=True) if wanted else ()
    given = dict(zip([name for name in inputs if asked[name]], found, strict=True))
    to_x = given.get("x")
    if to_x is not None and passed is not None:
        to_x = to_x + passed
    return (
        to_x if to_maps else None,
        to_x if to_branch else None,
        given.get("weight"),
        given.get("bias"),
        grad if to_residual else None,
        None,
        None,
        None,
    )


def _rows(maps: Tensor | None) -> Tensor | None:
    return None if maps is None else native.as_rows(maps)


def _native_forward(
    maps: tuple[Tensor, Tensor | None, Tensor | None],  # (*, C) each: rows, branch, residual
    weight: Tensor,
    bias: Tensor,
    kept: tuple[Tensor, Tensor, Tensor | None],
    numbers: tuple[float, float, float],
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # y, sum, mean, 1/√(variance + eps)
    rows, branch, residual = maps
    momentum, eps, slope = numbers
    running_mean, running_var, batches = kept
    sizes = (rows.numel() // rows.shape[-1], rows.shape[-1])
    y = empty_as(rows)
    total = None if branch is None else empty_as(rows)
    mean = empty_as(weight)
    invstd = empty_as(weight)
    native.call(
        "bn_train_moments", rows.dtype, rows, _or_none(branch), _or_none(total), mean, invstd,
        running_mean, running_var, _or_none(batches), *sizes, momentum, eps,
    )  # fmt: skip
    vectors = (mean, invstd, weight, bias)
    seen = rows if total is None else total
    added = _or_none(residual)
    native.call("bn_train_apply", rows.dtype, seen, added, y, *vectors, *sizes, slope)
    return y, total, mean, invstd


def _native_backward(
    # (*, C) each: rows; grad; the output, where there was a residual; and what the rows' gradient
    # has besides, where there was a branch
    maps: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    vectors: tuple[Tensor, ...],  # (C,) each: mean, invstd, weight, bias
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # of rows, weight, bias, residual
    rows, grad, y, passed = maps
    sizes = (rows.numel() // rows.shape[-1], rows.shape[-1])
    sums = (empty_as(vectors[2]), empty_as(vectors[2]))
    to_x = empty_as(rows)
    to_residual = None if y is None else empty_as(rows)
    seen = (rows, grad, _or_none(y))
    native.call("bn_train_sums", rows.dtype, *seen, *vectors, *sums, *sizes, slope)
    native.call(
        "bn_train_gradient", rows.dtype, *seen, _or_none(passed), to_x, _or_none(to_residual),
        *vectors, *sums, *sizes, slope,
    )  # fmt: skip
    return to_x, *sums, to_residual


def empty_as(tensor: Tensor) -> Tensor:
    """Contiguous memory for as much."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _or_none(tensor: Tensor | None) -> Tensor | int:
    """A tensor as the library takes it, or no address."""
    return 0 if tensor is None else tensor


def _triton_forward(*arguments: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    from synthesis_kernels.triton_forms.bn_train import forward

    return forward(*arguments)


def _triton_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    from synthesis_kernels.triton_forms.bn_train import backward

    return backward(*arguments)
