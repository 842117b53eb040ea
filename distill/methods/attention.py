"""Attention transfer (Zagoruyko & Komodakis 2017): where a network looks, whatever its channels
are.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from distill.batch import Batch, add_up
from distill.methods import Method
from distill.methods.shapes import same_side


def attention(features: Tensor) -> Tensor:  # (B, C, H, W) -> (B, H·W)
    """Each image's channel mean of A², scaled to length one."""
    return F.normalize(rearrange(features.square().mean(1), "b h w -> b (h w)"), dim=1)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:  # (B, C, h, w), (B, D, H, W)
    """mean (â_S − â_T)²; blind to the scale and to the order of channels of either."""
    student, teacher = same_side(student, teacher)
    return F.mse_loss(attention(student), attention(teacher))


def _loss(batch: Batch) -> Tensor:
    pairs = zip(batch.maps, batch.teacher_maps, strict=True)
    return add_up(attention_loss(student, teacher) for student, teacher in pairs)


AT = Method("at", 1000.0, frozenset({"maps"}), _loss, compares="never")
