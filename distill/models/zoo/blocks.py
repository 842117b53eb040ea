"""Pieces that several networks of the zoo share."""

from collections.abc import Callable

from torch import Tensor, nn


class PooledNetwork(nn.Module):
    """Features, their average over the map, and a linear layer."""

    def __init__(self, features: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, K)
        return self.head(self.features(images).mean((2, 3)))


def conv_bn_relu(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU; "same" padding."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def three_stages(block: Callable[..., nn.Module], channels: int, width: int) -> nn.Sequential:
    """Six blocks in three stages of `width`, 2 and 4 times `width` channels; only the first runs at
    full size. A block is built from its inputs, its outputs and perhaps a `stride`.
    """
    return nn.Sequential(
        block(channels, width),
        block(width, width, stride=2),
        block(width, 2 * width),
        block(2 * width, 2 * width, stride=2),
        block(2 * width, 4 * width),
        block(4 * width, 4 * width),
    )
