"""VGG-11 with BatchNorm (Simonyan & Zisserman 2015) and the one-layer head usual for 32×32
images.
"""

from torch import Tensor, nn

from distill.models.zoo.blocks import conv_bn_relu


class CifarVGG11(nn.Module):
    """Eight 3×3 convolutions, five poolings (skipped once the map is one pixel), global average,
    linear.
    """

    def __init__(self, channels: int = 3, classes: int = 10, size: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for outputs in (
            64,
            "pool",
            128,
            "pool",
            256,
            256,
            "pool",
            512,
            512,
            "pool",
            512,
            512,
            "pool",
        ):
            if isinstance(outputs, int):
                layers.append(conv_bn_relu(channels, outputs))
                channels = outputs
            elif size > 1:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))
