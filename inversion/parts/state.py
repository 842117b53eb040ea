"""The whole state of one job that trains a generator: saving a run is saving this."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.models import Classifier
from distill.options import DistillOptions
from distill.update import StudentState
from inversion.jobs import ShardJob
from inversion.options import SynthesisOptions
from inversion.parts.adversary import build_adversary, mixes
from inversion.parts.buffer import GrowingPool, ReplayBuffer
from inversion.parts.generator import Generator
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
    ) -> None:
        spec = teacher.spec
        shape = (spec.channels, spec.size, spec.size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            shape_options = {
                key: getattr(options.generator, key)
                for key in ("latent", "width", "conditioning", "blocks", "smooth")
            }
            generator = Generator(spec.channels, spec.size, spec.classes, **shape_options)
        self.generator = generator.to(device, memory_format=torch.channels_last)
        self.meta_optimiser = torch.optim.Adam(
            generator.learned(), options.generator.meta_rate, betas=(0.5, 0.999)
        )
        (student, self.learner), replay = (
            build_adversary(teacher, options, job.seed, precision),
            options.replay,
        )
        optimised = DistillOptions(learning_rate=options.adversary.learning_rate)
        self.adversary = StudentState(student, device, job.seed, optimised, self.learner)
        hints = (
            self.learner.ask_for_hints(torch.zeros(1, *shape, device=device))[1:]
            if self.learner
            else []
        )
        views = (
            options.adversary.views_per_image,
            mixes(options),
            [hint.shape[1:] for hint in hints],
            teacher.task,
            teacher.answer_shape[1:],
        )
        place = job.quotas, shape, options.held_out, device, *views
        self.buffer = (GrowingPool if replay.keep_all else ReplayBuffer)(*place)
        self.staged = ReplayBuffer(*place) if options.replay.replace_all else None
        self.policy = (
            Policy(device, replay.policy_rate, replay.policy or START)
            if replay.sampling == "policy"
            else None
        )
        self.bn_average: tuple[Tensor, Tensor] | None = None
        self.seed = job.seed
        self.raw_counts = torch.zeros(
            spec.classes, dtype=torch.int64, device=device
        )  # of all that was generated
        self.has_begun = False
        self.random = torch.Generator(device).manual_seed(job.seed)
        self.call = 0
        self.best_agreement, self.best_call = 0.0, 0
        self.seconds = 0.0

    def carry_moments(self, mean: Tensor, variance: Tensor, momentum: float) -> None:
        """Blend a batch's moments into those of earlier batches; the average stays where it is in
        memory.
        """
        if self.bn_average is None:
            self.bn_average = mean.clone(), variance.clone()
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
        """Restore what `state_dict` gave."""
        for part in ("generator", "meta_optimiser", "adversary", "buffer"):
            getattr(self, part).load_state_dict(state[part])
        if self.staged:
            self.staged.load_state_dict(state["staged"])
        if self.policy:
            self.policy.load_state_dict(state["policy"])
        device = self.buffer.images.device
        average = state["bn_average"]
        self.bn_average = average and tuple(value.to(device) for value in average)
        self.random.set_state(state["random"].cpu())
        self.raw_counts.copy_(state["raw_counts"])
        self.call, self.best_agreement, self.best_call, self.seconds = state["counters"]
