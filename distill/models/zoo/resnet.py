"""ResNet-18 and ResNet-34 (He et al. 2016) with the stem for 32×32 images: one 3×3 convolution and
no pooling.
"""

from torch import Tensor, nn

from distill.models.zoo.blocks import Layers, conv_bn_relu, norm_act


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = Layers(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = norm_act(self.bn1, self.conv1(x))
        return norm_act(self.bn2, self.conv2(hidden), residual=self.shortcut(x))


class CifarResNet(nn.Module):
    """Four stages of 64, 128, 256 and 512 channels with the given numbers of blocks."""

    def __init__(
        self, channels: int = 3, classes: int = 10, blocks: tuple[int, ...] = (2, 2, 2, 2)
    ) -> None:
        super().__init__()
        inputs = 64
        self.stem = conv_bn_relu(channels, inputs)
        layers = []
        for stage, count in enumerate(blocks):
            outputs = 64 * 2**stage
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(_Block(inputs, outputs, stride))
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, K)
        return self.head(self.layers(self.stem(images)).mean((2, 3)))
