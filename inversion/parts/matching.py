"""The body of recipes that match BatchNorm statistics: a generator, a buffer, an adversarial
student.

A step is one call: the generator learns a batch in a few inner steps, the buffer takes what it
lacks or what is better than what it has, and the adversarial student learns from draws of it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.models import Classifier, save_classifier
from distill.models.frozen import Frozen
from distill.runtime import Machine, Runtime
from distill.team_layers import join, sum_of
from inversion.inspection import TeacherNeed
from inversion.jobs import ShardJob, adversary_file
from inversion.options import SynthesisOptions
from inversion.parts.abreast import Abreast
from inversion.parts.adversary import DrawStep, adversary_steps, build_adversary
from inversion.parts.call import Made, Store, generator_call
from inversion.parts.inner import InnerLoop
from inversion.parts.own import NOTHING, Own
from inversion.parts.progress import (
    StepResult,
    Stopwatch,
    planned_calls,
    read_back,
    show_counts,
)
from inversion.parts.shard import buffer_tensors
from inversion.parts.state import SynthesisState
from inversion.parts.student_step import StudentStep
from inversion.teacher import trained_views

RISE = 1e-3
"""A rise of the held-out agreement that counts."""


class Matching:
    """One shard in the making by BatchNorm matching (see `inversion.recipes.Recipe`)."""

    needs: TeacherNeed = "BatchNorm"
    abreast: type[Abreast] | None = Abreast
    together = True

    @classmethod
    def settle(cls, options: SynthesisOptions, teacher: Classifier) -> SynthesisOptions:
        """Spell the teacher's views out, so that the manifest says what was done."""
        if options.objective.views is not None:
            return options
        objective = replace(options.objective, views=trained_views(teacher.spec))
        return replace(options, objective=objective)

    @classmethod
    def check(cls, teacher: Classifier, options: SynthesisOptions, runtime: Runtime) -> None:
        """Refuse an adversarial student that can't be built or taught as asked."""
        build_adversary(teacher, options)

    def __init__(
        self,
        teacher: Classifier,
        job: ShardJob,
        options: SynthesisOptions,
        machine: Machine,
        own: Own = NOTHING,
    ) -> None:
        self.teacher = teacher
        self.job = job
        self.options = options
        self.machine = machine
        self.state = SynthesisState(teacher, job, options, machine.device, machine.precision, own)
        self.frozen = Frozen(teacher, machine.precision)
        team = machine.processes
        self.state.team = team
        self.inner = InnerLoop(
            self.frozen,
            self.state.generator,
            self.state.adversary.student,
            options,
            self.state.buffer.capacity,
            machine.precision,
            job.seed,
            machine.step,
            own.named_terms,
            team,
        )
        # Only now: its frozen copy, made there, looks at each image by itself.
        join(self.state.adversary.trained, team)
        train = StudentStep(
            self.state.adversary,
            options.adversary.temperature,
            machine.precision,
            learner=self.state.learner,
            team=team,
        )
        self.store = Store(self.frozen, self.state, options, machine.precision, machine.step)
        self.learn = DrawStep(
            train,
            self.frozen,
            self.state,
            options,
            machine.precision,
            machine.step,
        )
        # Read once a call, with all that is read then.
        self.counts = self.state.buffer.counts().tolist()

    @property
    def full(self) -> bool:
        """Whether the buffer has no empty slot."""
        return sum(self.counts) == self.state.buffer.capacity

    @property
    def call(self) -> int:
        """Calls made so far."""
        return self.state.call

    @property
    def seconds(self) -> float:
        """Seconds they took."""
        return self.state.seconds

    @property
    def done(self) -> bool:
        """Full, balanced and no longer rising; or out of calls (twice as many while a class is
        short).
        """
        state = self.state
        if state.call >= planned_calls(state.call, self.options.calls, self.full):
            return True
        waited = state.call - max(state.best_call, self.options.adversary.begins)
        return self.full and state.call > 0 and waited >= self.options.patience

    @property
    def planned(self) -> int:
        """The calls asked for; twice as many where a class is still short after them."""
        return planned_calls(self.call, self.options.calls, self.full)

    def notice(self) -> str | None:
        """How much memory the hints take, where there are any."""
        if not self.state.learner:
            return None
        size = sum(hints.nbytes for hints in self.state.buffer.hints)
        if self.state.staged:
            size *= 2
        return f"hints of the buffer: {size / 2**30:.1f} GiB of memory"

    def step(self) -> StepResult:
        """One call."""
        began = time.perf_counter()
        watch = Stopwatch(self.machine.device)
        made = generator_call(self.inner, self.teacher, self.state, self.options)
        watch.mark()
        values, theta = self.read_back(self.take(made))
        elapsed = time.perf_counter() - began
        return self.report(values, theta, elapsed, watch.seconds()[0])

    def take(self, made: Made) -> dict[str, Tensor]:
        """Take a generator call's batch in, and let the student learn; gives the call's figures."""
        state = self.state
        images, logits, rank, figures = made
        figures["taken"] = self.store(images, logits, rank)
        figures |= adversary_steps(self.learn)
        state.call += 1
        return figures

    def read_back(self, figures: dict[str, Tensor]) -> tuple[dict[str, float], list[float]]:
        """Figures and a policy's weights, and how full the buffers are: what the host learns of a
        call, in its only wait for the device.
        """
        state = self.state
        was_full = self.full
        buffers = [state.buffer] if state.staged is None else [state.buffer, state.staged]
        rows = [buffer.counts() for buffer in buffers]
        if state.policy:
            rows.append(state.policy.theta)
        values, told = read_back(figures, *rows)
        for buffer, counts in zip(buffers, told, strict=False):
            buffer.note(round(sum(counts)))
        self.counts = [round(count) for count in told[0]]
        self._check_team()
        agreement = values["held_out_agreement"]
        # Agreement counts from the call that fills the buffer: before, the few images held out may
        # all be of one class.
        if not was_full or agreement > state.best_agreement + RISE:
            state.best_agreement = agreement
            state.best_call = state.call
        return values, told[-1] if state.policy else []

    def _check_team(self) -> None:
        """Refuse to go on where processes have come to different states."""
        networks = (self.state.generator, self.state.adversary.trained)
        self.inner.team.require_alike(
            lambda: [*map(sum_of, networks), *self.counts], f"call {self.state.call}"
        )

    def report(
        self, values: dict[str, float], theta: list[float], elapsed: float, generating: float
    ) -> StepResult:
        """What the driver is told of a call that took so many seconds, those of the generator
        among them.
        """
        self.state.seconds += elapsed
        notes: dict[str, Any] = {"seconds": elapsed, "generator_seconds": generating}
        if self.state.policy:
            notes["policy"] = theta
        line = (
            f"{show_counts(self.counts, self.job.quotas)}  bn {values['bn']:.2f}  "
            f"class {values['classes']:.2f}  adversary {values['adversary']:.2f}  "
            f"agreement {values['held_out_agreement']:.3f}  "
            f"{self.options.batch / elapsed:.0f} images/s"
        )
        return StepResult(values, self.counts, notes, line)

    def shard(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The buffer's images, and what is noted of how they came about."""
        state = self.state
        note: dict[str, Any] = {"raw_counts": state.raw_counts.tolist()}
        if state.policy:
            note["policy"] = [round(value, 4) for value in state.policy.theta.tolist()]
        note["held_out_agreement"] = round(state.best_agreement, 4)
        return buffer_tensors(state.buffer, self.teacher, self.job), note

    def leave(self, folder: Path) -> None:
        """The adversarial student, where it is to be kept."""
        if self.options.adversary.keep:
            save_classifier(self.state.adversary.student, adversary_file(folder, self.job.index))

    def state_dict(self) -> dict[str, Any]:
        """The job's state, and what the inner steps carry from call to call."""
        return {"job": self.state.state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.state.load_state_dict(state["job"])
        self.inner.load_state_dict(state["inner"])
        self.counts = self.state.buffer.counts().tolist()
