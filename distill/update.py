"""One update of a student, and everything its training consists of."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill.learner import Learner
from distill.memory import Parts
from distill.models import Classifier
from distill.models.classifier import on_device
from distill.optimisers import Scheduled, make_optimiser
from distill.options import DistillOptions
from distill.own import MakeOptimiser, OwnOptimiser, make_own
from distill.shadows import Shadows
from distill.team import SOLO, Team
from synthesis_kernels.choices import Way
from synthesis_kernels.step import Captured, optimiser_tensors
from synthesis_kernels.tape import Replayed


class StudentState:
    """Everything a student's training consists of; saving a run is saving this.

    Dropout inside a student can only draw from torch's global generator, so its state is saved too;
    whoever runs the loop forks and seeds it.
    """

    def __init__(
        self,
        student: Classifier,
        device: torch.device,
        seed: int,
        options: DistillOptions = DistillOptions(),
        trained: nn.Module | None = None,
        optimiser: MakeOptimiser | None = None,
    ) -> None:
        """With `optimiser`, a user's own takes the place of the options'."""
        self.student = on_device(student, device)
        # What is optimised: the student, or a learner that holds it.
        self.trained: nn.Module = student
        if trained is not None:
            self.trained = on_device(trained, device)
        self.optimiser: Scheduled | OwnOptimiser
        if optimiser is None:
            self.optimiser = make_optimiser(
                self.trained, options.optimiser, options.learning_rate, options.weight_decay
            )
        else:
            self.optimiser = make_own(optimiser, self.trained)
        self.generator = torch.Generator(device).manual_seed(seed)
        # A moving average; read only when it is shown.
        self.agreement = torch.zeros((), device=device)
        self.average = copy.deepcopy(student).requires_grad_(False) if options.ema else None
        # Of the student, once a step in bfloat16 has asked for them; not saved.
        self.shadows: Shadows | None = None
        # Weights of the student that agreed most on held-out images.
        self.best: dict[str, Tensor] = {}
        self.best_agreement = -1.0
        self.checks_since_best = 0
        self.step = 0
        self.seconds = 0.0
        self.rate = options.learning_rate
        # Of the rate: lowered where an update has broken the student.
        self.scale = 1.0
        # That a batch is learnt in: raised where memory did not suffice.
        self.parts = 1

    def set_share(self, share: float) -> None:
        """Set the learning rates to `share` of their peaks, or lower where they have to be."""
        self.optimiser.set_share(share * self.scale)

    def tensors(self) -> list[Tensor]:
        """Every tensor a step changes in place."""
        shadows = self.shadows.tensors if self.shadows else []
        optimiser = self.optimiser
        if isinstance(optimiser, OwnOptimiser):
            return [*optimiser_tensors(optimiser.inner), *self.trained.buffers(), *shadows]
        return [*optimiser_tensors(optimiser), *self.trained.buffers(), *shadows]

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the running average towards the student; a young average moves faster."""
        if self.average is None:
            return
        decay = min(decay, (1 + self.step) / (10 + self.step))
        new = self.student.state_dict()
        for name, average in self.average.state_dict().items():
            if average.is_floating_point():
                average.lerp_(new[name], 1 - decay)
            else:
                average.copy_(new[name])

    def random_state(self) -> dict[str, Any]:
        """Of everything that is drawn from."""
        cuda_dropout = None
        if self.agreement.is_cuda:
            cuda_dropout = torch.cuda.get_rng_state(self.agreement.device)
        return {
            "generator": self.generator.get_state(),
            "dropout": torch.get_rng_state(),
            "cuda_dropout": cuda_dropout,
        }

    def restore_random(self, state: dict[str, Any]) -> None:
        """Restore what `random_state` gave."""
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["dropout"])
        if self.agreement.is_cuda:
            torch.cuda.set_rng_state(state["cuda_dropout"], self.agreement.device)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, counters and random state."""
        return {
            "trained": self.trained.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "agreement": self.agreement,
            "average": self.average.state_dict() if self.average else {},
            "best": self.best,
            "best_agreement": self.best_agreement,
            "checks_since_best": self.checks_since_best,
            "step": self.step,
            "seconds": self.seconds,
            "rate": self.rate,
            "scale": self.scale,
            "parts": self.parts,
            **self.random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.trained.load_state_dict(state["trained"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.agreement.copy_(state["agreement"])
        if self.average:
            self.average.load_state_dict(state["average"])
        for name in ("best", "best_agreement", "checks_since_best", "step", "seconds", "parts"):
            setattr(self, name, state[name])
        # Another rate is the user's, who has seen what the one before it led to.
        self.scale = state["scale"] if state["rate"] == self.rate else 1.0
        self.restore_random(state)


def one_cycle(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: a linear rise over the warm-up, then half a cosine down to
    zero.
    """
    position = min((step + 0.5) / steps, 1.0)
    if position < warmup:
        return position / warmup
    return 0.5 * (1 + math.cos(math.pi * (position - warmup) / (1 - warmup)))


class Update:
    """One update by whatever `lesson(*inputs)` gives as (loss, *outputs), eager, captured or
    replayed; a call gives the outputs.

    In bfloat16 the student computes with copies of its weights, its shadows (`Shadows`). In a
    `team` each process learns its part of the batch, and gradients are averaged.
    """

    def __init__(
        self,
        state: StudentState,
        lesson: Callable[..., tuple[Tensor, ...]],
        step: Way = "eager",
        learner: Learner | None = None,
        team: Team = SOLO,
        batch_option: str = "",
    ) -> None:
        """With `batch_option`, every input has the batch first and the loss is a mean over it: it
        is learnt in parts where memory does not suffice.
        """
        self.state = state
        self.lesson = lesson
        self.parts = Parts(batch_option) if batch_option and team.world == 1 else None
        self.learner = learner
        self.team = team
        self.shadows: Shadows | None = None
        if learner and learner.precision is torch.bfloat16:
            state.shadows = state.shadows or Shadows(state.student)
            self.shadows = state.shadows
        self._run: Callable[..., tuple[Tensor, ...]] = self._update
        if step == "replay":
            self._run = Replayed(self._update)
        elif step != "eager":
            self._run = Captured(
                self._update, state.tensors, step == "graph", generators=[state.generator]
            )

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.state.step += 1
        if self.shadows:
            self.shadows.catch_up()
        outputs = self._run(*inputs)
        if self.shadows:
            self.shadows.note()  # a replay has followed, and told nobody
        return outputs

    def forget(self) -> None:
        """Let go of a step's memory that is kept for the next one."""
        self._run = self._update

    def _update(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        attempt = partial(self._follow_in_turns, inputs)
        if self.parts is None:
            outputs = attempt(1)
        else:
            outputs = self.parts.run(attempt, len(inputs[0]), inputs[0].device)
        if self.shadows:
            self.shadows.hand_over()
        self._share()
        self.state.optimiser.step()
        if self.shadows:
            self.shadows.follow()
        return tuple(outputs)

    def _follow_in_turns(self, inputs: Sequence[Tensor], count: int) -> list[Tensor]:
        """The gradients of so many parts, added up, and the outputs of the whole batch."""
        self.state.optimiser.zero_grad(set_to_none=True)
        if count == 1:
            return self._follow(inputs)
        cut = [tensor.chunk(count) for tensor in inputs]
        found = [self._follow(part, 1 / count) for part in zip(*cut, strict=True)]
        return [
            torch.cat(list(values)) if values[0].ndim else torch.stack(list(values)).mean()
            for values in zip(*found, strict=True)
        ]

    def _follow(self, inputs: Sequence[Tensor], share: float = 1.0) -> list[Tensor]:
        """The gradients of a lesson that counts for so much, and its outputs."""
        loss, *outputs = self._learn(*inputs)
        (loss if share == 1 else loss * share).backward()
        return [output.detach() for output in outputs]

    def _share(self) -> None:
        """Give every process the mean of all gradients."""
        if self.team.world > 1:
            gradients = [parameter.grad for parameter in self.state.trained.parameters()]
            found = [gradient for gradient in gradients if gradient is not None]
            self.team.add_up(found, 1 / self.team.world)

    def _learn(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The lesson, in which the learner's student has its shadows."""
        if self.learner is None:
            return self.lesson(*inputs)
        self.learner.shadows = self.shadows
        try:
            return self.lesson(*inputs)
        finally:
            self.learner.shadows = None
