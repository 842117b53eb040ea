"""One call of the generator: which classes it is asked for, what it makes, and what the buffer
takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import inversion.parts.terms as objectives
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.tasks.places import count_decisions, decide, share_hit
from distill.views import ask, to_input
from inversion.options import SynthesisOptions
from inversion.parts.adversary import ask_views
from inversion.parts.buffer import ReplayBuffer
from inversion.parts.inner import InnerLoop
from inversion.parts.inner_step import InnerResult, Request
from inversion.parts.state import SynthesisState
from synthesis_kernels.choices import Step
from synthesis_kernels.step import Captured


@dataclass(frozen=True)
class Call:
    """What a call asks of the generator."""

    wanted: Tensor  # (B,)
    targets: Tensor  # (B, *places)
    held: Tensor  # (K,) images of each class in the buffer
    adversarial: bool
    first_view: int

    def request(self, step: int) -> Request:
        """What its inner step of this number asks for."""
        view = torch.full((), self.first_view + step, device=self.wanted.device)
        return Request(self.wanted, self.targets, view, self.held, self.adversarial)


class Made(NamedTuple):
    """A call's batch."""

    images: Tensor
    """(B, C, H, W) uint8."""
    logits: Tensor
    """(B, K, *places), the teacher's for exactly these images."""
    rank: Tensor
    """(B,), the weight φ: those of the highest are let into the buffer first."""
    figures: dict[str, Tensor]
    """For the log."""


def generator_call(
    inner: InnerLoop,
    teacher: Classifier,
    state: SynthesisState,
    options: SynthesisOptions,
) -> Made:
    """The generator learns a batch in a few steps, and keeps of them what `generator.learning`
    says.
    """
    call = begin_call(inner, teacher, state, options)
    for step in range(options.generator.inner_steps):
        request = call.request(step)
        result = inner.run(*request.tensors, request.adversarial)
    return end_call(inner, teacher, state, options, call, result)


def begin_call(
    inner: InnerLoop, teacher: Classifier, state: SynthesisState, options: SynthesisOptions
) -> Call:
    """Draw what is asked for, and the noise that it is to be made of."""
    device = state.buffer.images.device
    growing = _growing(state)
    wanted = draw_classes(growing, options, state.random)
    targets = growing.task.targets(wanted, teacher.spec, state.random)
    noise = torch.randn(
        options.batch, options.generator.latent, generator=state.random, device=device
    )
    held = growing.counts()
    state.adversary.student.eval()
    goal = options.objective
    adversarial = goal.adversary > 0 and state.call >= goal.adversary_after
    inner.begin(noise, state.bn_average)
    first_view = state.call * options.generator.inner_steps
    return Call(wanted, targets, held, adversarial, first_view)


def end_call(
    inner: InnerLoop,
    teacher: Classifier,
    state: SynthesisState,
    options: SynthesisOptions,
    call: Call,
    result: InnerResult,
) -> Made:
    """Keep what the last step's `result` leaves, and ask the teacher for the batch's labels."""
    goal = options.objective
    device = state.buffer.images.device
    images = inner.end(call.wanted, call.targets)
    state.meta_optimiser.step()
    state.carry_moments(result.mean, result.variance, goal.bn_momentum)

    pixels = (images * 255).round().to(torch.uint8)
    # In full precision: these decide the stored labels.
    team = inner.team
    logits = team.gather(ask(teacher, to_input(team.part(pixels)), torch.float32))
    decisions = decide(logits)
    state.raw_counts += count_decisions(decisions, state.buffer.classes)
    rank = torch.zeros(len(logits), device=device)
    if goal.phi:
        rank = objectives.phi(logits, call.held, state.buffer.capacity, goal.gamma)
    figures = {
        "bn": result.bn.clone(),
        "classes": team.mean(result.class_loss.mean()),
        "adversary": team.mean(result.adversarial_loss.mean()),
        "alike": result.likeness.clone(),
        "hit": share_hit(decisions, call.targets),
    }
    for name, value in zip(inner.terms, result.own, strict=True):
        figures[name] = value.clone()
    return Made(pixels, logits, rank, figures)


def _growing(state: SynthesisState) -> ReplayBuffer:
    """The buffer whose lack is asked for."""
    if state.staged is not None and state.buffer.full:
        return state.staged
    return state.buffer


def draw_classes(
    buffer: ReplayBuffer, options: SynthesisOptions, generator: torch.Generator
) -> Tensor:  # (B,)
    """The classes to ask for: half of them all alike, half by what the buffer lacks.

    The teacher's running statistics describe all classes together, so a batch of lacking classes
    alone could not match.
    """
    device = buffer.quotas.device
    count = options.batch
    if options.replay.balanced_targets:
        count = options.batch // 2
    classes = torch.arange(buffer.classes, device=device)
    if count % buffer.classes:
        # Some get a place more than others, and not the same ones every time.
        classes = torch.randperm(buffer.classes, device=device, generator=generator)
    even = classes[torch.arange(count, device=device) % buffer.classes]
    if not options.replay.balanced_targets:
        return even
    lacking = (buffer.quotas - buffer.counts()).float()
    chances = torch.where(lacking.sum() > 0, lacking, torch.ones_like(lacking))
    drawn = torch.multinomial(chances, options.batch - count, replacement=True, generator=generator)
    return torch.cat([even, drawn])


class Store:
    """Partial refresh: new images replace the least useful. With `replace_all`, they wait until
    they replace everything.

    Where the step is captured, a graph holds the choice of slots and all that the teacher is asked.
    """

    def __init__(
        self,
        teacher: Frozen,
        state: SynthesisState,
        options: SynthesisOptions,
        precision: torch.dtype,
        step: Step = "eager",
    ) -> None:
        self.teacher = teacher
        self.state = state
        self.options = options
        self.precision = precision
        self._into = self._adder(state.buffer, step)
        self._into_staged = self._into if state.staged is None else self._adder(state.staged, step)

    def _adder(self, buffer: ReplayBuffer, step: Step) -> Callable[..., tuple[Tensor, ...]]:
        add = partial(self._add, buffer)
        if step == "eager":
            return add
        random = self.state.random
        return Captured(add, buffer.tensors, step == "graph", generators=[random])

    def __call__(
        self,
        images: Tensor,  # (B, C, H, W) uint8
        logits: Tensor,  # (B, K, *places)
        rank: Tensor,  # (B,)
    ) -> Tensor:  # () images taken in
        """Offer a call's images."""
        state = self.state
        into = state.buffer
        add = self._into
        if state.staged is not None and into.full:
            into = state.staged
            add = self._into_staged
        # Only then the device has to be asked whether it is full now.
        may_fill = into is state.staged and into.capacity - into.held <= len(images)
        (taken,) = add(images, logits, rank, torch.full((), state.call, device=images.device))
        into.note(None)
        if may_fill and into.full:
            state.buffer.take_over(into)
        return taken

    def _add(
        self,
        buffer: ReplayBuffer,
        images: Tensor,
        logits: Tensor,
        rank: Tensor,
        call: Tensor,  # ()
    ) -> tuple[Tensor]:
        replay = self.options.replay
        # A set that is replaced as a whole replaces none by itself.
        partly = self.state.staged is None
        refresh = replay.refresh if partly else 0.0
        half_life = replay.half_life if partly else 0.0
        taken = buffer.add(images, logits, rank, call, refresh, half_life)
        ask_views(buffer, self.teacher, self.state, self.options, self.precision)
        return (taken,)
