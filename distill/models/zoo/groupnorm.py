"""A small network without BatchNorm: GroupNorm (Wu & He 2018) keeps no statistics of the training
images, so only recipes that need none can start from it.
"""

from torch import nn

from distill.models.zoo.blocks import PooledNetwork, three_stages
from synthesis_kernels.errors import EchosetError

GROUP = 4
"""Channels that share a mean and a variance."""


class GroupNormConvNet(PooledNetwork):
    """`ConvNet` with GroupNorm: six 3×3 convolutions in three stages, global average, linear."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 16) -> None:
        if width < GROUP or width % GROUP:
            raise EchosetError(f"convnet-gn width must be a multiple of {GROUP}, got {width}")
        super().__init__(three_stages(_conv_gn_relu, channels, width), 4 * width, classes)


def _conv_gn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    norm = nn.GroupNorm(outputs // GROUP, outputs)
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True))
