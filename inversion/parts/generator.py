"""Generators: noise and a wanted class in, images in [0, 1] out, of any height and width from
8 pixels on.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models import ModelSpec
from distill.models.zoo.blocks import norm_act
from distill.sizes import Size, sides
from distill.tasks import find_task
from distill.tasks.places import label_rows
from inversion.options import GeneratorOptions
from inversion.options.teacher import SMALLEST
from inversion.parts.own import OwnGenerator, wrap_generator
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.upsample_conv import upsample_conv

LAYOUT = 0.5
"""Deviation of the weights that tell a stage of a layout, as they are drawn."""


class Generator(nn.Module):
    """Linear seed map of at most 8×8, 3×3 convolutions there (`blocks`), then ×2 up and 3×3
    convolution per stage (without blocks the generator of CMI and Fast-Datafree).

    With `layouts` every stage is also told which class is to be where.
    """

    def __init__(
        self,
        channels: int,
        size: Size,
        classes: int,
        latent: int = 128,
        width: int = 32,
        conditioning: float = 0.0,
        blocks: int = 0,
        smooth: float = 0.0,
        layouts: bool = False,
    ) -> None:
        super().__init__()
        shape = sides(size)
        if min(shape) < SMALLEST:
            raise EchosetError(
                f"the generator makes images of at least {SMALLEST}×{SMALLEST}, the teacher takes "
                f"{'×'.join(map(str, shape))}"
            )
        stages = max(2, math.ceil(math.log2(max(shape) / 8)))
        # Each stage doubles both sides (less one where a side is not a power of two times the
        # seed's).
        self.sides = [_over(shape, 2**k) for k in range(stages, -1, -1)]
        self.sides = [self.sides[0]] * blocks + self.sides
        self.latent = latent
        self.embedding = nn.Embedding(classes, latent)
        nn.init.normal_(self.embedding.weight, std=conditioning)
        self.seed = nn.Linear(latent, 2 * width * math.prod(self.sides[0]), bias=False)
        if smooth:
            _smoothen(self.seed.weight, self.sides[0], smooth)
        # Each position by itself and nothing learned: else a mean picture comes through, a layout
        # that all images share.
        self.seed_norm = nn.BatchNorm1d(self.seed.out_features, affine=False)
        widths = [2 * width] * (blocks + stages) + [width]
        self.stages = nn.ModuleList(_Stage(i, o) for i, o in itertools.pairwise(widths))
        self.image = nn.Conv2d(width, channels, 3, padding=1)
        self.classes = classes
        self.layouts = nn.ModuleList()
        if layouts:
            for inputs in widths:
                told = nn.Conv2d(classes, inputs, 1, bias=False)
                nn.init.normal_(told.weight, std=LAYOUT)
                self.layouts.append(told)

    def learned(self) -> list[nn.Parameter]:
        """What is learned from call to call: all but the seed map. Learned too, it lets a few
        directions of the noise take over and every class ends as one picture; as it was drawn,
        noise keeps its say. (A call's own steps do move its copy.)
        """
        return [parameter for parameter in self.parameters() if parameter is not self.seed.weight]

    # (B, latent), (B,), (B, *places) -> (B, C, H, W)
    def forward(self, noise: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
        return torch.sigmoid(self.raw(noise, wanted, targets))

    # (B, latent), (B,), (B, *places) -> (B, C, H, W)
    def raw(self, noise: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
        """The last convolution's answer, before it is squeezed into [0, 1]."""
        x = self.seed_norm(self.seed(noise + self.embedding(wanted)))
        x = x.unflatten(1, (-1, *self.sides[0])).contiguous(memory_format=torch.channels_last)
        told = label_rows(targets, self.classes) if self.layouts else targets
        for number, (shape, stage) in enumerate(zip(self.sides[1:], self.stages, strict=True)):
            x = stage(self._told(x, told, number), shape)
        return self.image(self._told(x, told, len(self.stages))).float()

    def _told(self, x: Tensor, rows: Tensor, number: int) -> Tensor:
        """The map with what is said of each of its places added, where anything is."""
        if not self.layouts:
            return x
        height, width = x.shape[2:]
        told: Tensor = self.layouts[number](F.adaptive_avg_pool2d(rows, (height, width)))
        return x + told


def build_generator(
    spec: ModelSpec,
    options: GeneratorOptions,
    seed: int,
    conditioning: float | None = None,
    own: nn.Module | None = None,
) -> Generator | OwnGenerator:
    """The generator of a teacher's images, with weights that follow from the seed; or a copy of a
    user's `own`.
    """
    conditioning = options.conditioning if conditioning is None else conditioning
    if own is not None:
        return wrap_generator(own, spec, options.latent, seed, conditioning)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator(
            spec.channels,
            spec.size,
            spec.classes,
            latent=options.latent,
            width=options.width,
            conditioning=conditioning,
            blocks=options.blocks,
            smooth=options.smooth,
            layouts=bool(find_task(spec.task).places(spec)),
        )


def _over(shape: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Height and width over a number, rounded up."""
    height, width = shape
    return math.ceil(height / divisor), math.ceil(width / divisor)


@torch.no_grad()
def _smoothen(
    weight: Tensor,  # (C·height·width, latent)
    shape: tuple[int, int],
    power: float,
) -> None:
    """Make of white pictures some whose amplitude falls with frequency to this power; the mean
    counts as half a period.
    """
    height, width = shape
    pictures = weight.unflatten(0, (-1, height, width))
    down = torch.fft.fftfreq(height)
    across = torch.fft.fftfreq(width)
    frequency = (down[:, None] ** 2 + across**2).sqrt().clamp_min(0.5 / max(height, width))
    spectrum = torch.fft.fft2(pictures, dim=(1, 2)) * frequency[None, :, :, None] ** -power
    smooth = torch.fft.ifft2(spectrum, dim=(1, 2)).real
    weight.copy_((smooth * pictures.std() / smooth.std()).flatten(0, 2))


class _Stage(nn.Module):
    """Nearest-neighbour growth, where there is any, 3×3 convolution, BatchNorm, LeakyReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        height, width = x.shape[2:]
        if shape == (2 * height, 2 * width):
            x = upsample_conv(x, self.convolution.weight, self.convolution.bias)
        elif shape == (height, width):
            x = self.convolution(x)
        else:  # a side of one pixel less than double, where it is no power of two times the seed's
            x = self.convolution(F.interpolate(x, size=shape, mode="nearest"))
        return norm_act(self.norm, x, 0.2)
