"""VGG-11 with BatchNorm (Simonyan & Zisserman 2015) and the one-layer head usual for 32×32
images.
"""

from torch import nn

from distill.models.zoo.blocks import PooledNetwork, conv_bn_relu
from distill.sizes import Size, sides

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))
"""The outputs of each stage's convolutions."""


class CifarVGG11(PooledNetwork):
    """Eight 3×3 convolutions, five poolings (skipped once the map is one pixel high or wide),
    global average, linear.
    """

    def __init__(self, channels: int = 3, classes: int = 10, size: Size = 32) -> None:
        side = min(sides(size))
        layers: list[nn.Module] = []
        for stage in STAGES:
            for outputs in stage:
                layers.append(conv_bn_relu(channels, outputs))
                channels = outputs
            if side > 1:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        super().__init__(nn.Sequential(*layers), channels, classes)
