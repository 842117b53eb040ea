"""LeNet-5 (LeCun et al. 1998) with ReLU, max pooling and BatchNorm."""

from torch import Tensor, nn

from distill.models.zoo.blocks import Layers
from distill.sizes import Size, sides
from synthesis_kernels.errors import EchosetError


class LeNet5(nn.Module):
    """Two 5×5 convolutions and three linear layers; 62K parameters at 28×28×1. Needs images of at
    least 16×16.
    """

    def __init__(self, channels: int = 1, classes: int = 10, size: Size = 28) -> None:
        super().__init__()
        height, width = sides(size)
        if min(height, width) < 16:
            raise EchosetError(
                f"lenet5 needs images of at least 16×16, got {height}×{width}; use 'convnet' "
                "instead"
            )
        places = ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
        self.features = Layers(
            nn.Conv2d(channels, 6, 5, padding=2, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.head = Layers(
            nn.Flatten(),
            nn.Linear(16 * places, 120, bias=False),
            nn.BatchNorm1d(120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84, bias=False),
            nn.BatchNorm1d(84),
            nn.ReLU(inplace=True),
            nn.Linear(84, classes),
        )

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, K)
        return self.head(self.features(images))
