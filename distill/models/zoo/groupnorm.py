"""A small network without BatchNorm: GroupNorm (Wu & He 2018) keeps no statistics of the training
images, so only recipes that need none can start from it.
"""

from torch import Tensor, nn

from synthesis_kernels.errors import EchosetError

GROUP = 4  # channels that share a mean and a variance


def _conv_gn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    norm = nn.GroupNorm(outputs // GROUP, outputs)
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True))


class GroupNormConvNet(nn.Module):
    """`ConvNet` with GroupNorm: six 3×3 convolutions in three stages, global average, linear."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        if width < GROUP or width % GROUP:
            raise EchosetError(f"convnet-gn width must be a multiple of {GROUP}, got {width}")
        self.features = nn.Sequential(
            _conv_gn_relu(channels, width),
            _conv_gn_relu(width, width, stride=2),
            _conv_gn_relu(width, 2 * width),
            _conv_gn_relu(2 * width, 2 * width, stride=2),
            _conv_gn_relu(2 * width, 4 * width),
            _conv_gn_relu(4 * width, 4 * width),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))
