"""A plain BatchNorm network for small images: strong on MNIST for its cost, since only two
convolutions run at full size.
"""

from torch import Tensor, nn

from distill.models.zoo.blocks import conv_bn_relu


class ConvNet(nn.Module):
    """Six 3×3 convolutions in three stages, global average, linear. Width 32 has 288K parameters,
    width 16 has 73K.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn_relu(channels, width),
            conv_bn_relu(width, width, stride=2),
            conv_bn_relu(width, 2 * width),
            conv_bn_relu(2 * width, 2 * width, stride=2),
            conv_bn_relu(2 * width, 4 * width),
            conv_bn_relu(4 * width, 4 * width),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))
