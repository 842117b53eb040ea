"""Maps of two networks, or of two stages of one, brought to one shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Pair, Part


def same_side(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:  # (B, C, h, w), (B, D, H, W)
    """The two maps, the larger one averaged down to the smaller one's height and width."""
    height = min(one.shape[2], two.shape[2])
    width = min(one.shape[3], two.shape[3])
    return _averaged(one, height, width), _averaged(two, height, width)


def _averaged(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[2:] == (height, width):
        return maps
    return F.adaptive_avg_pool2d(maps, (height, width))


class Projections(Part):
    """For each stage a 1×1 convolution from the student's channels to the teacher's, or nothing
    where they are as many.
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Identity() if own == given else nn.Conv2d(own, given, 1, bias=False)
            for own, given in pair.channels
        )

    def prepare(self, maps: Sequence[Tensor]) -> list[Tensor]:  # of (B, C, h, w)
        """The student's maps with the teacher's channels."""
        return [layer(each) for layer, each in zip(self.layers, maps, strict=True)]
