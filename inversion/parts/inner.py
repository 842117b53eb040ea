"""One inner step of the generator: images out of a clone, the teacher's and the adversary's
verdict, an Adam update.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import inversion.parts.terms as objectives
from distill.models import Classifier
from distill.models.frozen import Frozen
from inversion.options import SynthesisOptions
from inversion.parts.generator import Generator
from inversion.teacher import trained_views
from synthesis_kernels.backend import forward_pass
from synthesis_kernels.choices import Step
from synthesis_kernels.step import Captured, optimiser_tensors
from synthesis_kernels.views import ViewPlan, views


def _copy_all(into: Iterable[Tensor], source: Iterable[Tensor]) -> None:
    torch._foreach_copy_(list(into), list(source))


@dataclass(frozen=True)
class InnerResult:
    """What a step found, before its update. A captured step's next run overwrites it."""

    bn: Tensor  # ()
    wrong_class: Tensor  # (B,)
    fooling: Tensor  # (B,)
    alike: Tensor  # ()
    mean: Tensor  # (ΣC,) this batch's, at all BatchNorm layers
    variance: Tensor  # (ΣC,)


class InnerLoop:
    """A clone of the generator and its noise, which learn a batch in a few steps. What is kept of
    them: their summed gradient, or, where learning is plain, what the clone has learnt and Adam's
    moments; never what its seed map has (see `Generator.learned`).

    Everything that changes stays where it is in memory, call after call, so a step can be captured
    once.
    """

    def __init__(
        self,
        teacher: Frozen,
        generator: Generator,
        adversary: Classifier,
        options: SynthesisOptions,
        capacity: int,
        precision: torch.dtype,
        seed: int,
        step: Step = "eager",
    ) -> None:
        self.teacher = teacher
        self.generator = generator
        self.options = options
        self.capacity = capacity
        self.precision = precision
        self.step = step
        self.target = teacher.target(options.objective.bn_relative)
        spec = teacher.classifier.spec
        trained = options.objective.views or trained_views(spec)
        shift = round(trained.shift * spec.size)
        self.view_plan = ViewPlan(shift, trained.flip, round(trained.cutout * spec.size))
        self.seed = seed
        self.clone = copy.deepcopy(generator)
        device = self.target.mean.device
        self.places = torch.arange(options.batch, device=device)
        self.noise = nn.Parameter(
            torch.zeros(options.batch, options.generator.latent, device=device)
        )
        self.parameters = list(self.clone.parameters())
        self.plain = options.generator.learning == "plain"
        # What begins each call anew, and Adam's moments with it.
        self.passing = [self.noise, *([self.clone.seed.weight] if self.plain else self.parameters)]
        self.optimiser = self._build_optimiser()
        self.summed = [torch.zeros_like(p) for p in self.parameters]
        self.adversary = Frozen(adversary, precision) if options.objective.adversary > 0 else None
        self.average: tuple[Tensor, Tensor] | None = None
        self._captured = Captured(self._update, self._tensors, required=step == "graph")

    def _build_optimiser(self) -> torch.optim.Adam:
        """Adam for the clone and its noise, at a rate each."""
        generator = self.options.generator
        groups: list[dict[str, Any]] = [
            {"params": self.parameters},
            {"params": [self.noise], "lr": generator.latent_rate},
        ]
        optimiser = torch.optim.Adam(
            groups,
            generator.learning_rate,
            betas=(0.5, 0.999),
            fused=True,
            capturable=self.noise.is_cuda,
        )
        # Eager steps with it are fine here.
        optimiser._warned_capturable_if_run_uncaptured = True
        return optimiser

    @torch.no_grad()
    def begin(self, noise: Tensor, average: tuple[Tensor, Tensor] | None) -> None:
        """Start a call: the clone becomes the generator again, and the adversary what it has learnt
        to be.
        """
        _copy_all(self.parameters, self.generator.parameters())
        for buffer, source in zip(self.clone.buffers(), self.generator.buffers(), strict=True):
            buffer.copy_(source)
        for parameter in self.passing:
            for value in self.optimiser.state[parameter].values():
                value.zero_()
        torch._foreach_zero_(self.summed)
        self.noise.copy_(noise)
        self.average = average
        if self.adversary is not None:
            self.adversary.refresh()

    def run(
        self,
        wanted: Tensor,  # (B,) the class each image is made for
        targets: Tensor,  # (B, *places) the decisions asked of the teacher
        view: Tensor,  # () number of the view
        held: Tensor,  # (K,) images of each class in the buffer
        adversarial: bool,
    ) -> InnerResult:
        """One step towards the targets."""
        # The first calls go without adversary or average. They are few: only the form that stays is
        # captured.
        settled = adversarial == (self.adversary is not None)
        settled = settled and (self.average is not None or not self.options.objective.bn_momentum)
        if settled and self.step != "eager":
            return InnerResult(*self._captured(wanted, targets, view, held))
        return InnerResult(*self._update(wanted, targets, view, held, adversarial))

    @torch.no_grad()
    def end(self, wanted: Tensor) -> Tensor:  # (B,) -> (B, C, H, W) in [0, 1]
        """The images as they are after the last update; the generator gets what is kept, and
        running statistics.
        """
        with forward_pass(self.noise.device, self.precision):
            images = self.clone(self.noise, wanted)
        if self.plain:
            _copy_all(self.generator.learned(), self.clone.learned())
        else:
            for parameter, total in zip(self.generator.parameters(), self.summed, strict=True):
                parameter.grad = total
        for buffer, changed in zip(self.generator.buffers(), self.clone.buffers(), strict=True):
            buffer.copy_(changed)
        return images

    def state_dict(self) -> dict[str, Any]:
        """What the next call needs of this one, beside the generator."""
        return self.optimiser.state_dict() if self.plain else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        if self.plain:
            self.optimiser.load_state_dict(state)

    def _update(
        self,
        wanted: Tensor,
        targets: Tensor,
        view: Tensor,
        held: Tensor,
        adversarial: bool | None = None,
    ) -> tuple[Tensor, ...]:
        if adversarial is None:
            adversarial = self.adversary is not None
        self.optimiser.zero_grad(set_to_none=True)
        total, *result = self._objective(
            self.noise, wanted, targets, view, held, adversarial, self.average
        )
        total.backward()
        gradients: Any = [parameter.grad for parameter in self.parameters]
        torch._foreach_add_(self.summed, gradients)
        self.optimiser.step()
        return tuple(value.detach() for value in result)

    def _objective(
        self,
        noise: Tensor,
        wanted: Tensor,
        targets: Tensor,
        view: Tensor,
        held: Tensor,
        adversarial: bool,
        average: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, ...]:
        goal = self.options.objective
        with forward_pass(noise.device, self.precision):
            images = self.clone(noise, wanted)
        seen = views(images, self.places, view, self.view_plan, self.seed)
        logits, mean, variance = self.teacher.with_moments(seen)
        bn = self.target.distance(*self._carried(mean, variance, average))
        wrong_class = objectives.class_loss(logits, targets)
        phi = torch.ones_like(wrong_class)
        if goal.phi:
            phi = objectives.phi(logits.detach(), held, self.capacity, goal.gamma)
        fooling = torch.zeros_like(wrong_class)
        if adversarial and self.adversary is not None:
            fooling = objectives.adversarial_loss(logits, self.adversary(seen))
        loss = goal.bn * bn + (phi * (goal.classes * wrong_class + goal.adversary * fooling)).mean()
        alike = objectives.likeness(images, wanted)
        if goal.spread:
            loss = loss + goal.spread * alike
        return loss, bn, wrong_class, fooling, alike, mean, variance

    def _carried(
        self, mean: Tensor, variance: Tensor, average: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The moments that are to match: blended with those of earlier batches, batches may differ
        while their union matches.
        """
        momentum = self.options.objective.bn_momentum
        if average is None or not momentum:
            return mean, variance
        old_mean, old_variance = average
        return torch.lerp(mean, old_mean, momentum), torch.lerp(variance, old_variance, momentum)

    def _tensors(self) -> list[Tensor]:
        return [*optimiser_tensors(self.optimiser), *self.summed, *self.clone.buffers()]
