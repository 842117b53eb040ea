"""MobileNetV2 (Sandler et al. 2018) with the strides usual for 32×32 images."""

from torch import Tensor, nn

from distill.models.zoo.blocks import Layers, PooledNetwork, conv_bn_relu

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
        self.is_residual = stride == 1 and inputs == outputs
        self.layers = Layers(
            conv_bn_relu(inputs, hidden, kernel=1) if expansion > 1 else nn.Identity(),
            conv_bn_relu(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.is_residual:
            return x + self.layers(x)
        return self.layers(x)


class CifarMobileNetV2(PooledNetwork):
    """Inverted residuals; 2.2M parameters at ten classes."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        inputs = 32
        layers: list[nn.Module] = [conv_bn_relu(channels, inputs)]
        for expansion, outputs, count, first_stride in STAGES:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                layers.append(_Block(inputs, outputs, expansion, stride))
                inputs = outputs
        layers.append(conv_bn_relu(inputs, 1280, kernel=1))
        super().__init__(nn.Sequential(*layers), 1280, classes)
