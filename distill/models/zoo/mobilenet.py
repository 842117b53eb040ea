"""MobileNetV2 (Sandler et al. 2018) with the strides usual for 32×32 images."""

from torch import Tensor, nn

from distill.models.zoo.blocks import conv_bn_relu

# (expansion, channels, blocks, stride of the first block)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            conv_bn_relu(inputs, hidden, kernel=1) if expansion > 1 else nn.Identity(),
            conv_bn_relu(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class CifarMobileNetV2(nn.Module):
    """Inverted residuals; 2.2M parameters at ten classes."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        layers, inputs = [conv_bn_relu(channels, 32)], 32
        for expansion, outputs, count, stride in STAGES:
            for index in range(count):
                layers.append(_Block(inputs, outputs, expansion, stride if not index else 1))
                inputs = outputs
        layers.append(conv_bn_relu(inputs, 1280, kernel=1))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(1280, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))
