"""One inner step of the generator: images out of a clone, the teacher's and the adversary's
verdict, an Adam update.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import inversion.parts.terms as objectives
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.optimisers import Adam
from distill.tasks.places import per_image
from distill.team import SOLO, Team
from distill.team_layers import join, pooled
from inversion.options import SynthesisOptions
from inversion.parts.generator import Generator
from inversion.parts.inner_step import InnerResult, InnerStep, Request, Terms
from inversion.parts.own import NO_TERMS, OwnGenerator, Term, ask_term
from inversion.teacher import trained_views
from synthesis_kernels.backend import forward_pass
from synthesis_kernels.choices import Step
from synthesis_kernels.divergence import adversarial_divergence
from synthesis_kernels.step import Captured, optimiser_tensors
from synthesis_kernels.views import ViewPlan, views


def _copy_all(into: Iterable[Tensor], source: Iterable[Tensor]) -> None:
    places = list(into)
    if places:  # a user's generator may have no buffers
        torch._foreach_copy_(places, list(source))


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
        generator: Generator | OwnGenerator,
        adversary: Classifier,
        options: SynthesisOptions,
        capacity: int,
        precision: torch.dtype,
        seed: int,
        step: Step = "eager",
        terms: Mapping[str, tuple[Term, float]] = NO_TERMS,
        team: Team = SOLO,
    ) -> None:
        """`terms` of a user's own are added to the loss, with their weights. Of a `team`, every
        process makes its part of the images.
        """
        self.teacher = teacher
        self.generator = generator
        self.options = options
        self.capacity = capacity
        self.precision = precision
        self.step = step
        self.target = teacher.target(options.objective.bn_relative)
        spec = teacher.classifier.spec
        trained = options.objective.views or trained_views(spec)
        shift = round(trained.shift * spec.side)
        self.view_plan = ViewPlan(shift, trained.flip, round(trained.cutout * spec.side))
        self.seed = seed
        self.clone = copy.deepcopy(generator)
        join(self.clone, team)
        device = self.target.mean.device
        self.image_index = torch.arange(options.batch, device=device)
        self.noise = nn.Parameter(
            torch.zeros(options.batch, options.generator.latent, device=device)
        )
        self.parameters = list(self.clone.parameters())
        self.plain = options.generator.learning == "plain"
        # Parameters whose Adam moments begin each call at zero.
        learned = set(map(id, self.clone.learned())) if self.plain else set()
        passing = [parameter for parameter in self.parameters if id(parameter) not in learned]
        self.reset_each_call = [self.noise, *passing]
        self.optimiser = self._build_optimiser()
        self.summed = [torch.zeros_like(p) for p in self.parameters]
        self.adversary = Frozen(adversary, precision) if options.objective.adversary > 0 else None
        self.shares_input = self.adversary is not None and teacher.prepares_alike(self.adversary)
        self.average: Tensor | None = None  # (2, ΣC)
        self.terms = terms
        self.join(team)
        self._alone = InnerStep([self])
        # A beginning is the same when it is made twice, and an end but for running statistics.
        self._captured_begin = Captured(self._begin, list, required=step == "graph")
        statistics = lambda: [*self.clone.buffers(), *generator.buffers()]  # noqa: E731
        self._captured_end = Captured(self._end, statistics, required=step == "graph")

    def join(self, team: Team) -> None:
        """Make a team's part of each batch from now on."""
        self.team = team
        goal = self.options.objective
        device = self.noise.device
        images = self.options.batch // team.world
        self.zeros = torch.zeros(images, device=device)
        self.ones = torch.ones(images, device=device)
        # Every process computes the terms of the whole batch, so each weighs them by 1/world.
        weights = [goal.bn, goal.spread, *(weight for _, weight in self.terms.values())]
        shares = [torch.full((), weight / team.world, device=device) for weight in weights]
        self.bn_weight, self.spread_weight, *self.own_weights = shares

    def _build_optimiser(self) -> Adam:
        """Adam for the clone and its noise, at a rate each."""
        generator = self.options.generator
        groups: list[dict[str, Any]] = [
            {"params": self.parameters},
            {"params": [self.noise], "lr": generator.latent_rate},
        ]
        optimiser = Adam(
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
        """Start a call: make the clone the generator again, clear the summed gradients and Adam's
        moments, and take over what the adversary has learnt.
        """
        # The second call is the first with an average, and all has its place then.
        if average is None or self.average is None or self.step == "eager":
            self._begin(noise, *(average or ()))
        else:
            self._captured_begin(noise, *average)

    def _begin(self, noise: Tensor, *average: Tensor) -> tuple[Tensor, ...]:
        _copy_all(self.parameters, self.generator.parameters())
        _copy_all(self.clone.buffers(), self.generator.buffers())
        begun = [self.optimiser.state[parameter].values() for parameter in self.reset_each_call]
        torch._foreach_zero_([*self.summed, *itertools.chain(*begun)])
        self.noise.copy_(noise)
        self._take_average(average)
        if self.adversary is not None:
            self.adversary.refresh()
        return ()

    def _take_average(self, average: tuple[Tensor, ...]) -> None:
        """Keep it where it was: a captured step reads it there."""
        if not average:
            self.average = None
        elif self.average is None:
            self.average = torch.stack(average)
        else:
            _copy_all(self.average.unbind(), average)

    def run(
        self,
        wanted: Tensor,  # (B,) the class each image is made for
        targets: Tensor,  # (B, *places) the decisions asked of the teacher
        view: Tensor,  # () number of the view
        held: Tensor,  # (K,) images of each class in the buffer
        adversarial: bool,
    ) -> InnerResult:
        """One step towards the targets."""
        return self._alone([Request(wanted, targets, view, held, adversarial)])[0]

    def is_settled(self, adversarial: bool) -> bool:
        """Whether a step has the form that stays: with adversary and average, where there are
        any.
        """
        averaged = self.average is not None or not self.options.objective.bn_momentum
        return averaged and adversarial == (self.adversary is not None)

    @torch.no_grad()
    # (B,), (B, *places) -> (B, C, H, W) in [0, 1]
    def end(self, wanted: Tensor, targets: Tensor) -> Tensor:
        """The images as they are after the last update; the generator gets what is kept, and
        running statistics.
        """
        if not self.plain:
            for parameter, total in zip(self.generator.parameters(), self.summed, strict=True):
                parameter.grad = total
        end = self._end if self.step == "eager" else self._captured_end
        return self.team.gather(end(wanted, targets)[0])

    def _end(self, wanted: Tensor, targets: Tensor) -> tuple[Tensor]:
        with forward_pass(self.noise.device, self.precision):
            part = self.team.part
            images = self.clone(part(self.noise), part(wanted), part(targets))
        if self.plain:
            _copy_all(self.generator.learned(), self.clone.learned())
        _copy_all(self.generator.buffers(), self.clone.buffers())
        return (images,)

    def state_dict(self) -> dict[str, Any]:
        """What the next call needs of this one, beside the generator."""
        return self.optimiser.state_dict() if self.plain else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        if self.plain:
            self.optimiser.load_state_dict(state)

    def show(self, request: Request) -> tuple[Tensor, Tensor]:  # (B / team, C, H, W) twice
        """The clone's images, and what the teacher is to see of them."""
        part = self.team.part
        with forward_pass(self.noise.device, self.precision):
            images = self.clone(part(self.noise), part(request.wanted), part(request.targets))
        placed = self.team.placed(images)
        seen = views(placed, part(self.image_index), request.view, self.view_plan, self.seed)
        if self.shares_input:
            seen = self.teacher.prepare(seen)
        return images, seen

    def judge(
        self,
        request: Request,
        images: Tensor,  # (B / team, C, H, W) in [0, 1]
        seen: Tensor,  # (B / team, C, H, W)
        logits: Tensor,  # (B / team, K, *places) the teacher's
        moments: Tensor,  # (2, ΣC)
    ) -> tuple[Terms, InnerResult]:
        """The loss's terms, and what is told of them."""
        goal = self.options.objective
        team = self.team
        moments = pooled(moments, team)
        bn = self.target.distance(self._carried(moments))
        class_loss = objectives.class_loss(logits, team.part(request.targets))
        divergence = self.zeros
        if request.adversarial and self.adversary is not None:
            guess = self.adversary(seen, self.shares_input)
            divergence = per_image(adversarial_divergence(logits, guess))
            if goal.adversary_log:
                divergence = divergence.log1p()
        likeness = objectives.likeness(images, team.compared(request.wanted), team)
        worth = self.ones
        if goal.phi:
            worth = objectives.phi(
                logits.detach(), request.held, self.capacity, goal.gamma, team=team
            )
        batch = len(request.wanted)
        terms: Terms = []
        if goal.bn:
            terms.append((bn, self.bn_weight))
        if goal.classes:
            terms.append((class_loss, worth * (goal.classes / batch)))
        if divergence is not self.zeros:
            terms.append((divergence, worth * (-goal.adversary / batch)))
        if goal.spread:
            terms.append((likeness, self.spread_weight))
        own = self._ask_terms(images, logits, request.wanted)
        terms += zip(own, self.own_weights, strict=True)
        return terms, InnerResult(bn, class_loss, divergence, likeness, moments, tuple(own))

    def _ask_terms(self, images: Tensor, logits: Tensor, wanted: Tensor) -> list[Tensor]:
        """A user's own terms, of the whole batch."""
        if not self.terms:
            return []
        team = self.team
        asked = (team.gather(images), team.gather(logits), team.compared(wanted))
        return [ask_term(term, *asked) for term, _ in self.terms.values()]

    def learn(self) -> None:
        """Sum the step's gradients up, and follow them."""
        gradients: Any = [parameter.grad for parameter in self.parameters]
        to_noise: Any = self.noise.grad
        self.team.add_up([*gradients, to_noise])
        torch._foreach_add_(self.summed, gradients)
        self.optimiser.step()

    def _carried(self, moments: Tensor) -> Tensor:  # (2, ΣC)
        """The moments that are to match: blended with those of earlier batches, batches may differ
        while their union matches.
        """
        momentum = self.options.objective.bn_momentum
        if self.average is None or not momentum:
            return moments
        return torch.lerp(moments, self.average, momentum)

    def _tensors(self) -> list[Tensor]:
        return [*optimiser_tensors(self.optimiser), *self.summed, *self.clone.buffers()]
