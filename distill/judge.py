"""How well a student in training does, on images of the set that it does not learn from."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.lessons import Lessons
from distill.models import Classifier
from distill.tasks.places import decide
from distill.team import Team
from distill.update import StudentState
from distill.views import ask, to_input
from synthesis_kernels.errors import EchosetError


def mean_answered(
    values: Tensor,  # (B, *places)
    answers: Tensor,  # (B, K, *places) as logits
    team: Team,
) -> Tensor:  # ()
    """The mean over the whole batch of a team. In label maps, places without a label count nowhere
    (see `label_logits`).
    """
    if values.ndim == 1:
        return team.mean(values.mean())
    known = answers.amax(1) > -torch.inf
    total = team.sum(values.where(known, 0.0).sum())
    return total / team.sum(known.sum()).clamp_min(1)


class Judge:
    """Agreement of the student, as it would be kept, with the teacher (or the labels) on held-out
    images as they are.
    """

    def __init__(
        self, lessons: Lessons, teacher: Classifier | None, precision: torch.dtype
    ) -> None:
        self.pool = lessons.held_out
        self.precision = precision
        if lessons.held_out_labels is not None:
            self.wanted = lessons.held_out_labels
        elif teacher is not None:
            self.wanted = self._decide(teacher)
        else:
            raise EchosetError("patience judges by labels or a teacher, and there is neither")

    def _decide(self, network: Classifier) -> Tensor:
        parts = self.pool.split(500)
        return torch.cat([decide(ask(network, to_input(part), self.precision)) for part in parts])

    def look(self, state: StudentState) -> float:
        """Measure, and remember the student if it is the best so far."""
        student = state.average or state.student
        training = student.training
        known = self.wanted >= 0
        right = self._decide(student.eval()) == self.wanted
        agreement = right[known].float().mean().item()
        student.train(training)
        state.checks_since_best += 1
        if agreement > state.best_agreement:
            state.best_agreement = agreement
            state.checks_since_best = 0
            state.best = {
                name: tensor.detach().clone() for name, tensor in student.state_dict().items()
            }
        return agreement
