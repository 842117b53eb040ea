"""A generator behind the teacher's normaliser, which is the whole image prior of a contest."""

from __future__ import annotations

from torch import Tensor, nn

from distill.models import Classifier
from inversion.options import SynthesisOptions
from inversion.parts.generator import Generator, build_generator
from inversion.parts.own import Own, OwnGenerator


class Normalised(nn.Module):
    """A generator whose images have the mean and deviation that the teacher's normaliser
    expects.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, generator: Generator, teacher: Classifier) -> None:
        super().__init__()
        self.generator = generator
        channels = teacher.spec.channels
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.register_buffer("mean", teacher.mean.detach().clone().cpu())
        self.register_buffer("std", teacher.std.detach().clone().cpu())

    # (B, latent), (B,), (B, *places) -> (B, C, H, W) in [0, 1]
    def forward(self, noise: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
        images = self.norm(self.generator.raw(noise, wanted, targets).tanh())
        return (images * self.std + self.mean).clamp(0, 1)


def build_normalised(
    teacher: Classifier, options: SynthesisOptions, seed: int, own: Own
) -> nn.Module:
    """The generator behind the teacher's normaliser, or a user's own as it is. Without any
    conditioning no class could be asked for.
    """
    conditioning = options.generator.conditioning or 1.0
    generator = build_generator(teacher.spec, options.generator, seed, conditioning, own.generator)
    if isinstance(generator, OwnGenerator):
        return generator
    return Normalised(generator, teacher)
