"""A small vision transformer (Dosovitskiy et al. 2021) for images of about 32×32 pixels. It has no
BatchNorm.

Two convolutions with stride 2 make a token of every 4×4 pixels, as in "Early convolutions help
transformers see better" (Xiao et al. 2021): so it learns in fewer epochs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.sizes import Size, sides
from synthesis_kernels.errors import EchosetError

PATCH = 4
"""Side of the square of pixels that a token stands for."""
HEAD = 32
"""Numbers of a token that an attention head sees."""
HIDDEN = 2
"""Width of an MLP's hidden layer, in widths of the network."""


class VisionTransformer(nn.Module):
    """Tokens of 4×4 pixels, `depth` blocks with a head for every 32 of `width`, the mean of all
    tokens, linear. Smaller images have fewer tokens, and share the places of the others.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 10,
        size: Size = 32,
        width: int = 128,
        depth: int = 6,
    ) -> None:
        super().__init__()
        if width < HEAD or width % HEAD:
            raise EchosetError(f"vit width must be a multiple of {HEAD}, got {width}")
        if depth < 1:
            raise EchosetError(f"vit depth must be at least 1, got {depth}")
        shape = sides(size)
        if min(shape) < 2 * PATCH:
            raise EchosetError(
                f"vit needs images of at least {2 * PATCH}×{2 * PATCH}, got "
                f"{'×'.join(map(str, shape))}; use 'convnet-gn-16' instead"
            )
        grid = [-(-side // PATCH) for side in shape]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width // 2, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, 2, 1),
        )
        self.places = nn.Parameter(0.02 * torch.randn(1, width, *grid))
        self.blocks = nn.Sequential(*[_Block(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, K)
        x = self.stem(images)  # (B, D, h, w)
        places: Tensor = self.places
        if x.shape[2:] != places.shape[2:]:
            places = F.interpolate(places, x.shape[2:], mode="bilinear", antialias=True)
        tokens = (x + places).flatten(2).transpose(1, 2)  # (B, N, D)
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, HIDDEN * width), nn.GELU(), nn.Linear(HIDDEN * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D)
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Every token asks all others, in heads of 32 numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # a bias would cancel in the softmax
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D)
        query, key, value = (
            layer(x).unflatten(2, (self.heads, HEAD)).transpose(1, 2)  # (B, H, N, 32)
            for layer in (self.query, self.key, self.value)
        )
        answer = F.scaled_dot_product_attention(query, key, value)
        return self.out(answer.transpose(1, 2).flatten(2))
