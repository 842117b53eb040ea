"""Maps of two networks, or of two stages of one, brought to one size."""

import torch.nn.functional as F
from torch import Tensor


def same_side(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:  # (B, C, h, w), (B, D, H, W)
    """The two maps, the larger one averaged down to the smaller one's height and width."""
    height, width = (min(pair) for pair in zip(one.shape[2:], two.shape[2:], strict=True))
    sides = (height, width)
    return tuple(
        maps if maps.shape[2:] == sides else F.adaptive_avg_pool2d(maps, sides)
        for maps in (one, two)
    )
