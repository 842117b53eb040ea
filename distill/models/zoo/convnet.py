"""A plain BatchNorm network for small images: strong on MNIST for its cost, since only two
convolutions run at full size.
"""

from distill.models.zoo.blocks import PooledNetwork, conv_bn_relu, three_stages


class ConvNet(PooledNetwork):
    """Six 3×3 convolutions in three stages, global average, linear. Width 32 has 288K parameters,
    width 16 has 73K.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 16) -> None:
        super().__init__(three_stages(conv_bn_relu, channels, width), 4 * width, classes)
