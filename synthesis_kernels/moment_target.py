"""What a network keeps of the data it was trained on, its BatchNorms' running statistics: as a map
of channels, and as the target of a batch's moments, which is the BatchNorm loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


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
"""Added to a squared distance: at zero there is no direction to go, and no gradient."""


class MomentTarget:
    """The running statistics of all BatchNorm layers, and the distance of a batch's moments from
    them.

    Moments of all layers lie end to end in one tensor, so that `moment_distance` of all layers
    takes as many operations as of one.
    """

    def __init__(
        self, means: list[Tensor], variances: list[Tensor], relative: bool = False
    ) -> None:
        self.mean = torch.cat(means).float()
        self.variance = torch.cat(variances).float()
        unit_of = _own_units if relative else torch.ones_like
        self.unit = torch.cat([unit_of(variance.float()) for variance in variances])
        self.relative = relative
        self.moments = torch.stack([self.mean, self.variance])
        share = 1 / len(means) if relative else 1.0
        self.scale = share * torch.stack([self.unit.rsqrt(), self.unit.reciprocal()])
        sizes = torch.tensor([len(mean) for mean in means], device=self.mean.device)
        layers = torch.arange(len(sizes), device=self.mean.device)
        # (ΣC, L): 1 where the channel is of the layer.
        self.members = F.one_hot(layers.repeat_interleave(sizes), len(sizes)).float()

    def distance(self, moments: Tensor) -> Tensor:  # (2, ΣC) -> (), or (groups, 2, ΣC) -> (groups,)
        """L_BN = Σ_l ‖μ_l − μ̂_l‖₂ + ‖σ²_l − σ̂²_l‖₂; or in each channel's own units, and the mean
        over layers.
        """
        return _Distance.apply(moments, self)


class _Distance(torch.autograd.Function):
    """The gradient is found with the distance: half the operations that autograd would take."""

    @staticmethod
    def forward(ctx: Any, moments: Tensor, target: MomentTarget) -> Tensor:
        apart = (moments - target.moments) * target.scale
        # The sums of all layers by one product, and so in a fixed order (a scattered sum would
        # differ from run to run on CUDA).
        norms = (apart.square() @ target.members).add_(LEAST_SQUARE).sqrt_()
        slope = apart.mul_(target.scale).mul_(norms.reciprocal() @ target.members.T)
        ctx.save_for_backward(slope)
        return norms.sum((-2, -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad[..., None, None], None
