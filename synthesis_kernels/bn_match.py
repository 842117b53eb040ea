"""Batch moments in one pass, with a hand-written backward, and the BatchNorm distance built on them.

A BatchNorm layer normalises with running statistics of the data it was trained on. A synthetic batch that gives the
same mean and variance at every such layer looks, to the teacher, like that data. The moments are taken around a
given centre (the running mean), because E[x²] − E[x]² cancels when |mean| ≫ std; and in float32 whatever the input.
"""

import torch
from torch import Tensor


def batch_moments_reference(
    x: Tensor,  # (B, C, *) any float type
    centre: Tensor,  # (C,) float32
) -> tuple[Tensor, Tensor]:
    """Definition: per-channel mean and biased variance over every other axis."""
    axes = [0, *range(2, x.ndim)]
    variance, mean = torch.var_mean(x.to(centre.dtype), dim=axes, correction=0)
    return mean, variance


class _BatchMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        axes = [0, *range(2, x.ndim)]
        shifted = x.to(centre.dtype) - _per_channel(centre, x)
        offset = shifted.mean(axes)
        variance = (shifted.square_().mean(axes) - offset.square()).clamp_min_(0)
        mean = offset + centre
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor, None]:
        # d mean / dx = 1/n and d var / dx = 2 (x − mean)/n, so the gradient is one affine map of x per channel.
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = grad_variance * (2 / count)
        shift = grad_mean / count - slope * mean
        if x.dtype == slope.dtype:
            return torch.addcmul(_per_channel(shift, x), x, _per_channel(slope, x)), None
        # In half precision slope·x and slope·mean would cancel: subtract the mean first.
        centred = x - _per_channel(mean, x)
        return (centred * _per_channel(slope, x) + _per_channel(grad_mean / count, x)).to(x.dtype), None


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.ndim - 2))


def batch_moments(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Per-channel (mean, biased variance) of `x` over batch and space; differentiable in `x`, float32 or better."""
    return _BatchMoments.apply(x, centre)


def moment_distance(
    mean: Tensor,  # (C,)
    variance: Tensor,  # (C,)
    running_mean: Tensor,  # (C,)
    running_variance: Tensor,  # (C,)
    relative: bool = False,
) -> Tensor:
    """One layer's term of L_BN: ‖μ − μ̂‖₂ + ‖σ² − σ̂²‖₂ (DeepInversion, eq. 4).

    `relative` measures each channel in its own units, ‖(μ − μ̂)/σ̂‖₂ + ‖σ²/σ̂² − 1‖₂, so that the scale of the teacher's
    weights, which BatchNorm makes meaningless, has no say. A channel that never varied counts in units of its layer.
    """
    if relative:
        unit = running_variance.clamp_min(1e-3 * running_variance.mean() + 1e-12)
        return ((mean - running_mean) / unit.sqrt()).norm() + ((variance - running_variance) / unit).norm()
    return (mean - running_mean).norm() + (variance - running_variance).norm()
