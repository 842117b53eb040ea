"""A frozen BatchNorm that also reports its batch's moments.

A BatchNorm layer normalises with running statistics of the data it was trained on. A synthetic
batch that gives the same mean and variance at every such layer looks, to the teacher, like that
data. `bn_match` reads its input once and gives both: the layer's output (through the ReLU that
follows, where one does) and the batch's mean and variance. Its backward is one pass too,
normalisation and moments together, and needs nothing saved but the input.

The layers of a network write their sums into one buffer, `Moments`, and are finished together. That
way a layer takes one kernel each way, and its moments none: what the loss says of them comes to all
layers as one tensor.

The moments are float32 or better whatever the input, and are taken around the batch's own first
value, because E[x²] − E[x]² cancels when |mean| ≫ std.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form
from synthesis_kernels.choices import Form
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.match_forms import Added, empty_like, forms, parts_of


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
    moments = Moments(x, len(scale))
    y, token, _ = moments.match(x, scale, shift, relu, 0)
    return y, *moments.finish([token])


def bn_apply(x: Tensor, scale: Tensor, shift: Tensor, relu: bool = False) -> Tensor:
    """The output alone, where nobody reads the moments."""
    return add_and_apply(x, None, scale, shift, relu)[0]


def add_and_apply(
    x: Tensor, other: Tensor | None, scale: Tensor, shift: Tensor, relu: bool = False
) -> tuple[Tensor, Tensor]:
    """`bn_apply` of a sum, and the sum, in one pass. Without another input, the sum is `x`."""
    if other is not None and not _alike(x, other):
        x = x + other
        other = None
    form = _form_for(x, pick_form(x))
    y, total = _Apply.apply(x, other, *_widened(x, scale, shift), relu, form)
    return y, x if total is None else total


class Moments:
    """Of one forward pass: the sums that each layer leaves, end to end, and the moments they give.

    A layer takes its channels from a number `start` on. With `groups`, the batch is that many
    batches of equal size one after the other, and each has moments of its own.
    """

    sums: Tensor  # (groups, 2 + 2·parts, ΣC)
    """The centre, how many parts were written, and each part's two sums: of x − centre and of its
    square, divided by the number of rows.
    """
    values: Tensor  # (2, ΣC) or (groups, 2, ΣC)
    """Means and biased variances, once finished."""

    def __init__(self, like: Tensor, width: int, groups: int | None = None) -> None:
        self.form = pick_form(like)
        self.groups = groups or 1
        self.dtype = _wide(like)
        lines = 2 + 2 * parts_of(self.form)
        lead = () if groups is None else (groups,)
        kind: dict[str, Any] = {"dtype": self.dtype, "device": like.device}
        self.sums = torch.empty(self.groups, lines, width, **kind)
        self.values = torch.empty(*lead, 2, width, **kind)

    def match(
        self,
        x: Tensor,  # (B, C, *) any float type
        scale: Tensor,  # (C,)
        shift: Tensor,  # (C,)
        relu: bool,
        start: int,
        other: Tensor | None = None,  # (B, C, *)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's output, the token that `finish` takes of it, and what was normalised: `x`, or
        its sum with the other input.
        """
        if other is not None and not _alike(x, other):
            x = x + other
            other = None
        if len(x) % self.groups:
            raise EchosetError(f"a batch of {len(x)} is no {self.groups} groups of equal size")
        vectors = _widened(x, scale, shift)
        y, total, token = _Match.apply(x, other, *vectors, relu, self, start)
        return y, token, x if total is None else total

    def finish(self, tokens: Sequence[Tensor]) -> Tensor:  # (2, ΣC) or (groups, 2, ΣC)
        """Means and biased variances of all layers, which gave these tokens."""
        return _Finish.apply(self, *tokens)

    def form_for(self, x: Tensor) -> Form:
        """What a layer runs in: plain torch where it computes in another type than the buffer's."""
        return _form_for(x, self.form) if _wide(x) is self.dtype else "reference"


class _Match(native.Function):
    """One layer: output, sum if there is one, token. The token stands for its moments in autograd's
    graph: the token's gradient is the loss's by the moments of all layers, and one tensor for them
    all.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        other: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        moments: Moments,
        start: int,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.relu = relu
        ctx.form = moments.form_for(x)
        ctx.values = moments.values
        ctx.start = start
        rows, added = _rows(x, other)
        y = empty_like(rows)
        vectors = (scale, shift, moments.sums)
        forms(ctx.form).match_forward(rows, y, *vectors, relu, start, added)
        return *_kept(ctx, rows, added, scale, shift, y), moments.values.detach()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, above: Tensor | None, slopes: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        out = above
        if slopes is not None:
            out = _match_backward(ctx, grad, above, slopes)
        elif grad is not None:
            out = _apply_backward(ctx, grad, above)
        return out, _shared(ctx, out), None, None, None, None, None


class _Finish(torch.autograd.Function):
    """The moments of all layers. The layers are asked for their gradients after it."""

    @staticmethod
    def forward(ctx: Any, moments: Moments, *tokens: Tensor) -> Tensor:
        forms(moments.form).match_finish(moments.sums, moments.values)
        ctx.tokens = len(tokens)
        return moments.values.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[grad.contiguous()] * ctx.tokens


class _Apply(native.Function):
    """One layer without moments: output, and sum if there is one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        other: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        form: Form,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.relu = relu
        ctx.form = form
        rows, added = _rows(x, other)
        y = empty_like(rows)
        forms(form).apply_forward(rows, y, scale, shift, relu, added)
        return _kept(ctx, rows, added, scale, shift, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, above: Tensor | None) -> tuple[Tensor | None, ...]:
        out = above if grad is None else _apply_backward(ctx, grad, above)
        return out, _shared(ctx, out), None, None, None, None


def _shared(ctx: Any, grad: Tensor | None) -> Tensor | None:
    """The gradient of the other input: the same, where there is one."""
    return grad if ctx.needs_input_grad[1] else None


def _rows(x: Tensor, other: Tensor | None) -> tuple[Tensor, Added | None]:
    """Inputs as rows of channels, and where their sum goes."""
    rows = native.as_rows(x)
    return rows, None if other is None else (native.as_rows(other), empty_like(rows))


def _kept(
    ctx: Any, rows: Tensor, added: Added | None, scale: Tensor, shift: Tensor, y: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Output and sum; what was normalised is saved."""
    total = None
    if added:
        rows = added[1]
        total = native.as_channels(rows)
    ctx.save_for_backward(rows, scale, shift)
    return native.as_channels(y), total


def _match_backward(ctx: Any, grad: Tensor | None, above: Tensor | None, slopes: Tensor) -> Tensor:
    """The gradient of x, by way of the output, of the sum and of the moments."""
    rows, scale, shift = ctx.saved_tensors
    grad_rows = _like_rows(grad, rows)
    if grad_rows is None:
        grad_rows = torch.zeros_like(rows)
    out = empty_like(rows)
    vectors = (scale, shift, ctx.values, slopes)
    place = (ctx.relu, ctx.start, _like_rows(above, rows))
    forms(ctx.form).match_backward(rows, grad_rows, out, *vectors, *place)
    return native.as_channels(out)


def _apply_backward(ctx: Any, grad: Tensor, above: Tensor | None) -> Tensor:
    """The gradient of x by way of the output and of the sum."""
    rows, scale, shift = ctx.saved_tensors
    out = empty_like(rows)
    grad_rows = native.as_rows(grad.to(rows.dtype))
    given = (scale, shift, ctx.relu, _like_rows(above, rows))
    forms(ctx.form).apply_backward(rows, grad_rows, out, *given)
    return native.as_channels(out)


def _like_rows(grad: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if grad is None else native.as_rows(grad.to(rows.dtype))


@native.unwatched
def _alike(x: Tensor, other: Tensor) -> bool:
    """Whether two inputs can be added in the kernel."""
    # A traced network may have added a number.
    return type(x) is type(other) and x.shape == other.shape and x.dtype is other.dtype


def _wide(x: Tensor) -> torch.dtype:
    """The type to compute in."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


@native.unwatched
def _widened(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift in the type to compute in."""
    if not x.numel() or not x.shape[1] == len(scale) == len(shift):
        raise EchosetError(
            f"bn_match got an input of shape {tuple(x.shape)} for {len(scale)} channels"
        )
    wide = _wide(x)
    return scale.to(wide).contiguous(), shift.to(wide).contiguous()


@native.unwatched
def _form_for(x: Tensor, form: Form) -> Form:
    """The form, or plain torch for a type that it does not come in."""
    return "reference" if form == "native" and x.dtype not in native.DTYPES else form


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.ndim - 2))
