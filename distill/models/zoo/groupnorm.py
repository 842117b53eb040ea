"""Small networks without BatchNorm: GroupNorm (Wu & He 2018) keeps no statistics of the training
images, so only recipes that need none can start from them.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.zoo.blocks import PooledNetwork, three_stages
from synthesis_kernels.errors import EchosetError

GROUP = 4
"""Channels that share a mean and a variance."""


class GroupNormConvNet(PooledNetwork):
    """`ConvNet` with GroupNorm: six 3×3 convolutions in three stages, global average, linear."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 16) -> None:
        _check_width("convnet-gn", width)
        super().__init__(three_stages(_conv_gn_relu, channels, width), 4 * width, classes)


class GroupNormResNet(PooledNetwork):
    """A convolution at full size, then three stages of 2, 4 and 8 times `width` channels: one
    convolution with stride 2, and one residual block. Global average, linear. Width 16 has 485K
    parameters.
    """

    def __init__(self, channels: int = 3, classes: int = 10, width: int = 16) -> None:
        _check_width("resnet-gn", width)
        layers: list[nn.Module] = [_conv_gn_relu(channels, width)]
        for stage in (1, 2, 4):
            layers.append(_conv_gn_relu(stage * width, 2 * stage * width, stride=2))
            layers.append(_Block(2 * stage * width))
        super().__init__(nn.Sequential(*layers), 8 * width, classes)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv_gn_relu(width, width)
        self.second = _conv_gn(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)), inplace=True)


def _conv_gn(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(outputs // GROUP, outputs))


def _conv_gn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*_conv_gn(inputs, outputs, stride), nn.ReLU(inplace=True))


def _check_width(family: str, width: int) -> None:
    if width < GROUP or width % GROUP:
        raise EchosetError(f"{family} width must be a multiple of {GROUP}, got {width}")
