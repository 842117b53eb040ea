"""Wide residual networks (Zagoruyko & Komodakis 2016), pre-activation, for 32×32 images."""

from torch import Tensor, nn

from distill.models.zoo.blocks import (
    is_heard,
    is_only_listened_to,
    norm_act,
    norm_act_conv,
    norm_act_conv_beside,
    sum_norm_act,
    tell,
    two_convs,
)
from synthesis_kernels.errors import EchosetError


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.parts(x)
        return first if second is None else first + second

    def parts(
        self, x: Tensor, branch: Tensor | None = None, before: nn.Module | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What x + branch gives, as two parts of a sum that whoever comes next shall make. Those
        who listen to the block `before` are told its own.
        """
        if branch is None and self.shortcut is None:
            tell(before, x)
            y, x = norm_act_conv_beside(self.bn1, self.conv1, x)
            return norm_act_conv(self.bn2, self.conv2, y, x)
        x, active = sum_norm_act(self.bn1, x, branch)
        tell(before, x)
        if self.shortcut is None:
            return norm_act_conv(self.bn2, self.conv2, self.conv1(active), x)
        # The shortcut is from the activated input, too, as in the authors' code.
        y, beside = two_convs(self.bn1, self.conv1, self.shortcut, active)
        return norm_act_conv(self.bn2, self.conv2, y, beside)


class WideResNet(nn.Module):
    """WRN-depth-widen: three stages of (depth − 4)/6 blocks with 16, 32 and 64 × widen channels."""

    def __init__(
        self, channels: int = 3, classes: int = 10, depth: int = 16, widen: int = 1
    ) -> None:
        super().__init__()
        if not 10 <= depth < 10_000 or (depth - 4) % 6:
            raise EchosetError(
                f"wrn depth must be 10, 16, 22, 28, 34, 40 … (6·n + 4, below 10,000), got {depth}"
            )
        if widen < 1:
            raise EchosetError(f"wrn widen must be at least 1, got {widen}")
        inputs = 16
        self.stem = nn.Conv2d(channels, inputs, 3, 1, 1, bias=False)
        blocks = []
        for stage, outputs in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for index in range((depth - 4) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(_Block(inputs, outputs, stride))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, K)
        x = self.stem(images)
        blocks = [block for block in self.blocks if isinstance(block, _Block)]
        is_whole = len(blocks) == len(self.blocks)
        told = is_whole and all(map(is_only_listened_to, blocks))
        # Where the network is traced, a proxy comes in, and every block is to be seen.
        is_plain = type(x) is Tensor and self.training
        if not is_plain or not told or is_heard(self.blocks):
            return self.head(norm_act(self.bn, self.blocks(x)).mean((2, 3)))
        # Each block leaves its sum to the next one's BatchNorm.
        branch: Tensor | None = None
        before: nn.Module | None = None
        for block in blocks:
            x, branch = block.parts(x, branch, before)
            before = block
        x, active = sum_norm_act(self.bn, x, branch)
        tell(before, x)
        return self.head(active.mean((2, 3)))
