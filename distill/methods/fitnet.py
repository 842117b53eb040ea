"""FitNets (Romero et al. 2015): the student's feature maps, brought to the teacher's shape, should
equal the teacher's.
"""

import torch.nn.functional as F
from torch import Tensor

from distill.methods.shapes import same_side


def fitnet_loss(
    student: Tensor,  # (B, C, h, w), after an adapter where its channels differed
    teacher: Tensor,  # (B, C, H, W)
) -> Tensor:
    """mean (A_S − A_T)², after averaging the larger map down to the smaller one's size."""
    return F.mse_loss(*same_side(student, teacher))
