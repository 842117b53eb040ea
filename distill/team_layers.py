"""Layers that look across a batch, for a team: a BatchNorm over all processes' images, and dropout
whose draws are those of the whole batch.

    with over_all(network, team):
        ...  # a training, each process with its part of the batch
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from distill.team import SOLO, Team
from synthesis_kernels.errors import EchosetError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DRAWING = ("Dropout", "DropPath", "StochasticDepth", "DropBlock2d")
"""How the names of layers end that draw for each image, in torchvision, timm and transformers."""
RATES = ("p", "prob", "drop_prob", "dropout")
"""What such layers call the share that they leave out."""


class TeamNorm(_BatchNorm):
    """A BatchNorm that in training normalises by the moments of all processes' images. They are
    taken around each process's own mean, because E[x²] − E[x]² cancels.
    """

    team: Team = SOLO

    def forward(self, input: Tensor) -> Tensor:  # (B, C, *)
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        vectors = (self.weight, self.bias)
        y, mean, variance = _Normalised.apply(input, *vectors, self.eps, self.team)
        if self.training and self.running_mean is not None:
            rows = input.numel() // input.shape[1] * self.team.world
            self._follow(mean, variance * (rows / max(rows - 1, 1)))
        return y

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as torch's do."""
        assert self.running_mean is not None and self.running_var is not None
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:  # the mean of all batches
                share = 1 / float(self.num_batches_tracked)
        for kept, new in ((self.running_mean, mean), (self.running_var, variance)):
            kept.lerp_(new.to(kept.dtype), share or 0.0)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of places will do."""


class _Normalised(torch.autograd.Function):
    """One exchange each way: of moments, and of the gradient's sums."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (B, C, *)
        weight: Tensor | None,  # (C,)
        bias: Tensor | None,
        eps: float,
        team: Team,
    ) -> tuple[Tensor, Tensor, Tensor]:  # (B, C, *), (C,) twice
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        own = torch.var_mean(wide, _all_but_channels(x), correction=0)
        moments = team.gathered(torch.stack(own)[None])  # (world, 2, C)
        variances, means = moments.unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        spread = (variance + eps).rsqrt()
        y = (wide - _along(mean, x)) * _along(spread if weight is None else spread * weight, x)
        if bias is not None:
            y += _along(bias, x)
        ctx.save_for_backward(x, weight, mean, spread)
        ctx.team = team
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, spread = ctx.saved_tensors
        wide = grad.to(spread.dtype)
        normal = (x.to(spread.dtype) - _along(mean, x)) * _along(spread, x)
        axes = _all_but_channels(x)
        own = torch.stack([wide.sum(axes), (wide * normal).sum(axes)])
        rows = x.numel() // x.shape[1] * ctx.team.world
        shift, tilt = ctx.team.summed(own.clone()) / rows
        scale = spread if weight is None else spread * weight
        to_x = (wide - _along(shift, x) - normal * _along(tilt, x)) * _along(scale, x)
        to_bias = own[0] if ctx.needs_input_grad[2] else None
        to_weight = own[1] if ctx.needs_input_grad[1] else None
        return to_x.to(x.dtype), to_weight, to_bias, None, None


class TeamDropout(nn.Dropout):
    """Dropout that draws for the whole batch, and takes this process's part of it."""

    team: Team = SOLO

    def forward(self, input: Tensor) -> Tensor:  # (B, *)
        if not self.training or not self.p:
            return input
        last = input.ndim == 4 and input.is_contiguous(memory_format=torch.channels_last)
        kept = torch.empty(
            (self.team.world * len(input), *input.shape[1:]),
            dtype=input.dtype,
            device=input.device,
            # Numbers are drawn in the order of memory.
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )
        kept.bernoulli_(1 - self.p).div_(max(1 - self.p, 1e-12))
        return input * self.team.part(kept)


def join(network: nn.Module, team: Team) -> dict[nn.Module, type[nn.Module]]:
    """Have the network's layers look across the whole batch; tells what they were. Names, weights
    and statistics stay, and so do hooks.
    """
    if team.world == 1:
        return {}
    kinds = {layer: _counterpart(name, layer) for name, layer in network.named_modules()}
    found: dict[nn.Module, type[nn.Module]] = {}
    for layer, kind in kinds.items():
        if kind is not None:
            found[layer] = type(layer)
            layer.__class__ = kind
            layer.team = team
    return found


def pooled(moments: Tensor, team: Team) -> Tensor:  # (2, C)
    """Means and biased variances of all processes' images, from those of this one's part."""
    if team.world == 1:
        return moments
    return pool(team.gather(moments[None]))


def pool(moments: Tensor) -> Tensor:  # (N, 2, C) -> (2, C)
    """Means and biased variances of N equal parts together."""
    means, variances = moments.unbind(1)
    mean = means.mean(0)
    return torch.stack([mean, (variances + (means - mean).square()).mean(0)])


@torch.no_grad()
def sum_of(network: nn.Module) -> float:
    """The sum of all its numbers, by which two networks can be told apart."""
    tensors = [*network.parameters(), *network.buffers()]
    return float(torch.stack([tensor.double().sum() for tensor in tensors]).sum())


@contextmanager
def over_all(network: nn.Module, team: Team) -> Iterator[None]:
    """The same for a time."""
    found = join(network, team)
    try:
        yield
    finally:
        for layer, kind in found.items():
            layer.__class__ = kind
            del layer.team


def _counterpart(name: str, layer: nn.Module) -> type[nn.Module] | None:
    """What stands in for a layer; None where it looks at each image by itself."""
    if type(layer) in NORMS:
        return TeamNorm
    if type(layer) is nn.Dropout:
        return TeamDropout
    if isinstance(layer, _BatchNorm) or _draws(layer):
        raise EchosetError(
            f"layer {name} is a {type(layer).__name__}, which several processes can't share a "
            "batch over; use one process, or a network with torch's BatchNorm1d to 3d and Dropout, "
            "and other layers' dropout set to 0"
        )
    return None


def _draws(layer: nn.Module) -> bool:
    """Whether a layer draws in training, as far as that can be seen: all processes would draw the
    same for different images.
    """
    if isinstance(layer, nn.RReLU):
        return True
    named = type(layer).__name__.endswith(DRAWING)
    if not named and not isinstance(layer, (_DropoutNd, nn.MultiheadAttention, nn.RNNBase)):
        return False
    return any((getattr(layer, rate, 0) or 0) > 0 for rate in RATES)


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _along(values: Tensor, x: Tensor) -> Tensor:  # (C,) -> (1, C, 1, …)
    return values.view(1, -1, *[1] * (x.ndim - 2))
