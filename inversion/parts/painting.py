"""Batches that a generator without BatchNorm matching makes: drawn, painted, and learnt from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from distill.models import Classifier
from inversion.options import SynthesisOptions
from inversion.parts.buffer import ReplayBuffer
from inversion.parts.call import draw_classes
from synthesis_kernels.backend import forward_pass

Drawn = tuple[Tensor, Tensor, Tensor]
"""A batch's noise (B, Z), the decisions it is asked for (B, *places) and their classes (B,)."""
Figures = dict[str, Tensor]  # () each


class Painter:
    """A generator, and what its images are drawn from."""

    def __init__(
        self,
        generator: nn.Module,
        teacher: Classifier,
        options: SynthesisOptions,
        random: torch.Generator,
        precision: torch.dtype,
    ) -> None:
        self.generator = generator
        self.teacher = teacher
        self.options = options
        self.random = random
        self.precision = precision

    def draw(self, buffer: ReplayBuffer) -> Drawn:
        """A batch that asks for what the buffer lacks."""
        wanted = draw_classes(buffer, self.options, self.random)
        targets = self.teacher.task.targets(wanted, self.teacher.spec, self.random)
        shape = (len(wanted), self.options.generator.latent)
        noise = torch.randn(shape, generator=self.random, device=self.random.device)
        return noise, targets, wanted

    def paint(self, drawn: Drawn) -> Tensor:  # (B, C, H, W) in [0, 1]
        """The images of a batch."""
        noise, targets, wanted = drawn
        with forward_pass(noise.device, self.precision):
            images: Tensor = self.generator(noise, wanted, targets)
        return images

    def follow(
        self, loss_of: Callable[[Drawn], tuple[Tensor, Figures]], drawn: Drawn, count: int
    ) -> tuple[Tensor, Figures]:  # (), () each
        """The generator's gradients of so many parts of a batch, added up; its loss and figures."""
        parameters = list(self.generator.parameters())
        for parameter in parameters:
            parameter.grad = None
        found: list[Figures] = []
        for noise, targets, wanted in zip(*(each.chunk(count) for each in drawn), strict=True):
            loss, figures = loss_of((noise, targets, wanted))
            (loss / count).backward(inputs=parameters)
            found.append({"loss": loss.detach(), **figures})
        means = {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}
        return means.pop("loss"), means
