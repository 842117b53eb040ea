"""A frozen BatchNorm that also reports its batch's moments, and the BatchNorm distance built on
them.

A BatchNorm layer normalises with running statistics of the data it was trained on. A synthetic
batch that gives the same mean and variance at every such layer looks, to the teacher, like that
data. `bn_match` reads its input once and gives both: the layer's output (through the ReLU that
follows, where one does) and the batch's mean and variance. Its backward is one pass too,
normalisation and moments together, and needs nothing saved but the input.

The moments are float32 or better whatever the input, and are taken around the batch's own first
value, because E[x²] − E[x]² cancels when |mean| ≫ std.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form
from synthesis_kernels.choices import Form
from synthesis_kernels.errors import EchosetError


def bn_match_reference(
    x: Tensor,  # (B, C, *) any float type
    scale: Tensor,  # (C,) γ/√(σ̂² + ε), float32 or better
    shift: Tensor,  # (C,) β − μ̂·scale
    relu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Definition: x·scale + shift, perhaps through a ReLU; mean and biased variance of x over every
    axis but channels.
    """
    wide = x.to(scale.dtype)
    variance, mean = torch.var_mean(wide, dim=[0, *range(2, x.ndim)], correction=0)
    y = wide * _per_channel(scale, x) + _per_channel(shift, x)
    if relu:
        y = y.relu()
    return y.to(x.dtype), mean, variance


def bn_match(
    x: Tensor, scale: Tensor, shift: Tensor, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Frozen BatchNorm of `x` with its batch moments: (output, mean, biased variance).
    Differentiable in `x` alone.
    """
    scale, shift, form = _prepare(x, scale, shift)
    if form == "reference":
        return _Composite.apply(x, scale, shift, relu)
    return _BatchNormMatch.apply(x, scale, shift, relu, form)


def bn_apply(x: Tensor, scale: Tensor, shift: Tensor, relu: bool = False) -> Tensor:
    """The output alone, where nobody reads the moments."""
    scale, shift, form = _prepare(x, scale, shift)
    if form == "reference":
        return _Composite.apply(x, scale, shift, relu)[0]
    return _BatchNormApply.apply(x, scale, shift, relu, form)


def _prepare(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Form]:
    """Scale and shift in the type to compute in, and the form to run."""
    if not x.numel() or not x.shape[1] == len(scale) == len(shift):
        raise EchosetError(
            f"bn_match got an input of shape {tuple(x.shape)} for {len(scale)} channels"
        )
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    form = pick_form(x)
    if form == "native" and x.dtype not in native.DTYPES:
        form = "reference"
    return scale.to(wide), shift.to(wide), form


def fold_batch_norm(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(scale, shift) of a frozen BatchNorm."""
    scale = (variance.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double()
    return scale.float(), shift.float()


def moment_distance(
    mean: Tensor,  # (C,)
    variance: Tensor,  # (C,)
    running_mean: Tensor,  # (C,)
    running_variance: Tensor,  # (C,)
    relative: bool = False,
) -> Tensor:
    """One layer's term of L_BN: ‖μ − μ̂‖₂ + ‖σ² − σ̂²‖₂ (DeepInversion, eq. 4).

    `relative` measures each channel in its own units, ‖(μ − μ̂)/σ̂‖₂ + ‖σ²/σ̂² − 1‖₂, so that the
    scale of the teacher's weights, which BatchNorm makes meaningless, has no say. A channel that
    never varied counts in units of its layer.
    """
    mean_apart = mean - running_mean
    variance_apart = variance - running_variance
    if relative:
        unit = _own_units(running_variance)
        mean_apart = mean_apart / unit.sqrt()
        variance_apart = variance_apart / unit
    return mean_apart.norm() + variance_apart.norm()


def _own_units(running_variance: Tensor) -> Tensor:  # (C,)
    """Each channel's variance, but of one that never varied a thousandth of its layer's."""
    return running_variance.clamp_min(1e-3 * running_variance.mean() + 1e-12)


LEAST_SQUARE = 1e-30
"""Of a distance whose gradient is followed."""


class MomentTarget:
    """The running statistics of all BatchNorm layers, and the distance of a batch's moments from
    them.

    Moments of all layers lie end to end in one vector, so that `moment_distance` of all layers
    takes a dozen operations or so, and not a dozen for each layer.
    """

    def __init__(
        self, means: list[Tensor], variances: list[Tensor], relative: bool = False
    ) -> None:
        self.mean = torch.cat(means).float()
        self.variance = torch.cat(variances).float()
        unit_of = _own_units if relative else torch.ones_like
        self.unit = torch.cat([unit_of(variance.float()) for variance in variances])
        self.root_unit = self.unit.sqrt()
        self.relative = relative
        sizes = torch.tensor([len(mean) for mean in means], device=self.mean.device)
        layers = torch.arange(len(sizes), device=self.mean.device)
        # (ΣC, L): 1 where the channel is of the layer.
        self.members = F.one_hot(layers.repeat_interleave(sizes), len(sizes)).float()

    def distance(self, mean: Tensor, variance: Tensor) -> Tensor:  # (ΣC,), (ΣC,) -> ()
        """L_BN = Σ_l ‖μ_l − μ̂_l‖₂ + ‖σ²_l − σ̂²_l‖₂; or in each channel's own units, and the mean
        over layers.
        """
        mean_apart = (mean - self.mean) / self.root_unit
        variance_apart = (variance - self.variance) / self.unit
        apart = torch.stack([mean_apart, variance_apart])
        # The sums of all layers by one product, and so in a fixed order (a scattered sum would
        # differ from run to run on CUDA). Below the least there is no direction to go.
        squares = apart.square() @ self.members
        total = squares.clamp_min(LEAST_SQUARE).sqrt().sum()
        if self.relative:
            return total / self.members.shape[1]
        return total


class _Composite(torch.autograd.Function):
    """In torch operations, for every device; saves the input alone and is traced through by
    torch.compile.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        axes = [0, *range(2, x.ndim)]
        wide = x.to(scale.dtype)
        centre = _first_values(wide)
        apart = wide - _per_channel(centre, x)
        offset = apart.mean(axes)
        variance = (apart.square().mean(axes) - offset.square()).clamp_min(0)
        mean = centre + offset
        y = wide * _per_channel(scale, x) + _per_channel(shift, x)
        ctx.save_for_backward(x, scale, shift, mean)
        ctx.relu = relu
        if relu:
            y = y.relu()
        return y.to(x.dtype), mean, variance

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, grad_mean: Tensor, grad_variance: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, scale, shift, mean = ctx.saved_tensors
        wide = x.to(scale.dtype)
        slope, base = _moment_gradient(x, grad_mean, grad_variance)
        through = grad.to(scale.dtype) * _per_channel(scale, x)
        if ctx.relu:
            y = wide * _per_channel(scale, x) + _per_channel(shift, x)
            through = torch.where(y > 0, through, 0)
        apart = wide - _per_channel(mean, x)
        to_x = through + apart * _per_channel(slope, x) + _per_channel(base, x)
        return to_x.to(x.dtype), None, None, None


class _BatchNormMatch(torch.autograd.Function):
    """In one pass over rows of channels, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, relu: bool, form: Form
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = native.as_rows(x)
        centre = _first_values(x).to(scale.dtype)
        y, mean, variance = _FORWARD[form](rows, scale, shift, centre, relu)
        ctx.save_for_backward(rows, scale, shift, mean)
        ctx.relu = relu
        ctx.form = form
        return native.as_channels(y), mean, variance

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, grad_mean: Tensor, grad_variance: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows, scale, shift, mean = ctx.saved_tensors
        slope, base = _moment_gradient(rows.movedim(-1, 1), grad_mean, grad_variance)
        grad = native.as_rows(grad.to(rows.dtype))
        out = _BACKWARD[ctx.form](rows, grad, scale, shift, mean, slope, base, ctx.relu)
        return out.movedim(-1, 1), None, None, None, None


class _BatchNormApply(torch.autograd.Function):
    """The same passes; what they say of the moments is left unread."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, relu: bool, form: Form
    ) -> Tensor:
        rows = native.as_rows(x)
        y, _, _ = _FORWARD[form](rows, scale, shift, shift, relu)
        ctx.save_for_backward(rows, scale, shift)
        ctx.relu = relu
        ctx.form = form
        return native.as_channels(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, scale, shift = ctx.saved_tensors
        grad = native.as_rows(grad.to(rows.dtype))
        none = torch.zeros_like(scale)
        out = _BACKWARD[ctx.form](rows, grad, scale, shift, none, none, none, ctx.relu)
        return out.movedim(-1, 1), None, None, None, None


@torch.library.custom_op("echoset::match_forward", mutates_args=())
def _native_forward(
    rows: Tensor,  # (*, C) contiguous
    scale: Tensor,  # (C,) of the type to compute in, like shift and centre
    shift: Tensor,
    centre: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = rows.shape[-1]
    count = rows.numel() // channels
    y = torch.empty_like(rows)
    sums = scale.new_zeros(torch.get_num_threads(), 2, channels)
    native.call(
        "match_forward", rows.dtype, rows, y, centre, scale, shift, sums, count, channels, relu
    )
    offset, square = sums.sum(0) / count
    return y, centre + offset, (square - offset.square()).clamp_min_(0)


@_native_forward.register_fake
def _(
    rows: Tensor, scale: Tensor, shift: Tensor, centre: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(scale), torch.empty_like(scale)


@torch.library.custom_op("echoset::match_backward", mutates_args=())
def _native_backward(
    rows: Tensor,  # (*, C) contiguous, like grad
    grad: Tensor,
    scale: Tensor,  # (C,) of the type to compute in, like the other four
    shift: Tensor,
    mean: Tensor,
    slope: Tensor,
    base: Tensor,
    relu: bool,
) -> Tensor:
    channels = rows.shape[-1]
    count = rows.numel() // channels
    out = torch.empty_like(rows)
    vectors = (scale, shift, mean, slope, base)
    native.call("match_backward", rows.dtype, rows, grad, out, *vectors, count, channels, relu)
    return out


@_native_backward.register_fake
def _(
    rows: Tensor,
    grad: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    slope: Tensor,
    base: Tensor,
    relu: bool,
) -> Tensor:
    return torch.empty_like(rows)


def _triton_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from synthesis_kernels.triton_forms.bn_match import forward

    return forward(*arguments)


def _triton_backward(*arguments: Any) -> Tensor:
    from synthesis_kernels.triton_forms.bn_match import backward

    return backward(*arguments)


_FORWARD: dict[Form, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "native": _native_forward,
    "triton": _triton_forward,
}
_BACKWARD: dict[Form, Callable[..., Tensor]] = {
    "native": _native_backward,
    "triton": _triton_backward,
}


def _moment_gradient(x: Tensor, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor, Tensor]:
    """d mean/dx = 1/n and d var/dx = 2(x − mean)/n: (slope, base) of the affine map of x − mean
    that they add up to.
    """
    count = x.numel() // x.shape[1]
    return grad_variance * (2 / count), grad_mean / count


def _first_values(x: Tensor) -> Tensor:  # (B, C, *) -> (C,)
    first = x[0]
    if x.ndim > 2:
        first = first.flatten(1)[:, 0]
    return first.contiguous()


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.ndim - 2))
