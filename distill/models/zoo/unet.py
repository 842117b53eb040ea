"""A network that answers with a class a pixel: a U-Net (Ronneberger et al. 2015) of residual
blocks, whose ways across are sums, as in LinkNet (Chaurasia & Culurciello 2017).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.zoo.blocks import norm_act, norm_act_conv, norm_act_conv_beside
from synthesis_kernels.errors import EchosetError

BLOCKS = (1, 1, 2, 2)
"""Of each stage on the way down: at a half, a quarter, an eighth and a sixteenth of the size."""


class UNet(nn.Module):
    """Four stages down, of 1, 2, 4 and 8 times `width` channels, and three up again. Nothing runs
    at full size but the last resize, of the logits. Width 16 has 1.1M parameters, width 8 has 264K.
    """

    def __init__(self, channels: int = 3, classes: int = 2, width: int = 16) -> None:
        super().__init__()
        if width < 1:
            raise EchosetError(f"unet width must be at least 1, got {width}")
        widths = [width * 2**stage for stage in range(len(BLOCKS))]
        self.stem = nn.Conv2d(channels, width, 3, 2, 1, bias=False)
        self.down = nn.ModuleList([_blocks(width, BLOCKS[0])])
        self.up = nn.ModuleList()
        for wide, narrow, count in zip(widths[1:], widths, BLOCKS[1:], strict=False):
            self.down.append(nn.Sequential(_NormConv(narrow, wide, 2), _blocks(wide, count)))
            self.up.insert(0, _Up(wide, narrow))
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, K, H, W)
        x = self.stem(images)
        maps = []
        for stage in self.down:
            x = stage(x)
            maps.append(x)
        for up, beside in zip(self.up, maps[-2::-1], strict=True):
            x = up(x, beside)
        logits = self.head(norm_act(self.bn, x))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)


class _NormConv(nn.Module):
    """BatchNorm, ReLU and a 3×3 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return norm_act_conv(self.bn, self.conv, x)[0]


class _Block(nn.Module):
    """That twice, and a sum with what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y, x = norm_act_conv_beside(self.bn1, self.conv1, x)
        y, beside = norm_act_conv(self.bn2, self.conv2, y, x)
        return y if beside is None else y + beside


class _Up(nn.Module):
    """Fewer channels at twice the size; then the map from the way down is added."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.narrow = _NormConv(inputs, outputs)
        self.block = _Block(outputs)

    # (B, I, h, w), (B, O, H, W) -> (B, O, H, W)
    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        x = self.narrow(x)
        x = F.interpolate(x, beside.shape[2:], mode="bilinear", align_corners=False)
        return self.block(x + beside)


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*[_Block(width) for _ in range(count)])
