"""The adversarial student's update."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.learner import Learner
from distill.options import DistillOptions
from distill.team import SOLO, Team
from distill.update import StudentState, Update
from synthesis_kernels.choices import Way


class StudentStep:
    """One update on images that count differently: the step of the adversarial student.

    It is an ordinary learner's, on answers that are known. Without a `learner` there is one by
    hinton alone.
    """

    def __init__(
        self,
        state: StudentState,
        temperature: float,
        precision: torch.dtype,
        step: Way = "eager",
        learner: Learner | None = None,
        team: Team = SOLO,
    ) -> None:
        options = DistillOptions(temperature=temperature)
        self.learner = learner or Learner(state.student, None, options, precision, answered=True)
        device = state.agreement.device
        self._nothing = torch.empty(0, device=device)
        self._share = torch.zeros((), device=device)
        self.learner.share(team)
        option = "synthesis.adversary.batch"
        self._update = Update(state, self._lesson, step, self.learner, team, option)

    def __call__(
        self,
        images: Tensor,  # (B, C, H, W) in [0, 1], as the student shall see them
        teacher_logits: Tensor,  # (B, K, *places) for these very views
        weights: Tensor,  # (B,)
        *hints: Tensor,  # (B, C, h, w) as the learner gives them
    ) -> Tensor:  # (B, K, *places) the student's logits before the update
        return self._update(images, teacher_logits, weights, *hints)[0]

    def _lesson(
        self, images: Tensor, teacher_logits: Tensor, weights: Tensor, *hints: Tensor
    ) -> tuple[Tensor, Tensor]:
        nothing = self._nothing
        loss, logits, _ = self.learner(
            images, teacher_logits, nothing, self._share, nothing, *hints, importance=weights
        )
        return loss, logits
