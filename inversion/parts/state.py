"""The whole state of one job that trains a generator: saving a run is saving this."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.models import Classifier
from distill.models.classifier import on_device
from distill.optimisers import Adam
from distill.options import DistillOptions
from distill.team import SOLO
from distill.update import StudentState
from inversion.jobs import ShardJob
from inversion.options import SynthesisOptions
from inversion.parts.adversary import ask_hints_again, build_adversary, mixes
from inversion.parts.buffer import GrowingPool, ReplayBuffer
from inversion.parts.generator import build_generator
from inversion.parts.own import NOTHING, Own
from inversion.parts.policy import START, Policy


class SynthesisState:
    """Everything one job consists of; saving a run is saving this and what `InnerLoop.state_dict`
    adds.
    """

    def __init__(
        self,
        teacher: Classifier,
        job: ShardJob,
        options: SynthesisOptions,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        own: Own = NOTHING,
    ) -> None:
        self.options = options
        generator = build_generator(teacher.spec, options.generator, job.seed, own=own.generator)
        self.generator = on_device(generator, device)
        self.meta_optimiser = Adam(
            self.generator.learned(), options.generator.meta_rate, betas=(0.5, 0.999), fused=True
        )
        student, self.learner = build_adversary(
            teacher, options, job.seed, precision, own.adversary
        )
        optimised = DistillOptions(learning_rate=options.adversary.learning_rate)
        self.adversary = StudentState(student, device, job.seed, optimised, self.learner)
        replay = options.replay
        self.buffer = self._build_buffer(
            GrowingPool if replay.keep_all else ReplayBuffer, teacher, job, options
        )
        self.staged: ReplayBuffer | None = None
        if replay.replace_all:
            self.staged = self._build_buffer(ReplayBuffer, teacher, job, options)
        self.policy: Policy | None = None
        if replay.sampling == "policy":
            self.policy = Policy(device, replay.policy_rate, replay.policy or START)
        self.bn_average: tuple[Tensor, Tensor] | None = None
        self.seed = job.seed
        # The processes that share each batch, each with the whole of this.
        self.team = SOLO
        # Of all that was generated.
        self.raw_counts = torch.zeros(teacher.spec.classes, dtype=torch.int64, device=device)
        self.has_begun = False
        self.random = torch.Generator(device).manual_seed(job.seed)
        self.call = 0
        self.best_agreement = 0.0
        self.best_call = 0
        self.seconds = 0.0

    def _build_buffer(
        self,
        kind: type[ReplayBuffer],
        teacher: Classifier,
        job: ShardJob,
        options: SynthesisOptions,
    ) -> ReplayBuffer:
        """A buffer with room for images, the teacher's answers to views of them, and its hints."""
        spec = teacher.spec
        shape = spec.shape
        device = self.adversary.agreement.device
        hints: list[Tensor] = []
        if self.learner:
            hints = self.learner.ask_for_hints(torch.zeros(1, *shape, device=device))[1:]
        return kind(
            job.quotas,
            shape,
            options.held_out,
            device,
            options.adversary.views_per_image,
            mixes(options),
            [hint.shape[1:] for hint in hints],
            teacher.task,
            teacher.answer_shape[1:],
        )

    def carry_moments(self, mean: Tensor, variance: Tensor, momentum: float) -> None:
        """Blend a batch's moments into those of earlier batches; the average stays where it is in
        memory.
        """
        if self.bn_average is None:
            self.bn_average = (mean.clone(), variance.clone())
        for old, new in zip(self.bn_average, (mean, variance), strict=True):
            old.copy_(torch.lerp(new, old, momentum))

    def state_dict(self) -> dict[str, Any]:
        """Modules, optimisers, buffers, counters and random states."""
        return {
            "generator": self.generator.state_dict(),
            "meta_optimiser": self.meta_optimiser.state_dict(),
            "adversary": self.adversary.state_dict(),
            "buffer": self.buffer.state_dict(),
            "staged": self.staged.state_dict() if self.staged else None,
            "policy": self.policy.state_dict() if self.policy else None,
            "bn_average": self.bn_average,
            "random": self.random.get_state(),
            "raw_counts": self.raw_counts,
            "counters": (self.call, self.best_agreement, self.best_call, self.seconds),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; hints are asked for again."""
        for part in ("generator", "meta_optimiser", "adversary", "buffer"):
            getattr(self, part).load_state_dict(state[part])
        if self.staged is not None:
            self.staged.load_state_dict(state["staged"])
        for buffer in (self.buffer, self.staged):
            if self.learner and buffer is not None:
                ask_hints_again(buffer, self.learner, self.options, self.seed, self.team)
        if self.policy:
            self.policy.load_state_dict(state["policy"])
        device = self.buffer.images.device
        self.bn_average = None
        if state["bn_average"] is not None:
            mean, variance = state["bn_average"]
            self.bn_average = (mean.to(device), variance.to(device))
        self.random.set_state(state["random"].cpu())
        self.raw_counts.copy_(state["raw_counts"])
        self.call, self.best_agreement, self.best_call, self.seconds = state["counters"]
