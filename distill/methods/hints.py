"""Hints at every stage, after FitNets (Romero et al. 2015), in shares: how much of the teacher's
features a student can't tell.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.methods.shapes import same_side


def hint_loss(
    student: Tensor,  # (B, C, h, w), after an adapter
    teacher: Tensor,  # (B, C, H, W)
) -> Tensor:
    """Σ(A_S − A_T)² / Σ(A_T − Ā_T)², Ā_T each channel's mean: the share of the teacher's variance
    that is left unexplained.

    1 for a student that knows the means alone, whatever the layer, the network and its units.
    """
    student, teacher = same_side(student, teacher)
    spread = (teacher - teacher.mean((0, 2, 3), keepdim=True)).square().mean()
    # A layer that is the same everywhere has nothing to tell, and to divide by next to nothing
    # would blow up the gradient.
    live = spread > 1e-10 * teacher.square().mean()
    return F.mse_loss(student, teacher) / torch.where(live, spread, torch.inf)
