"""The student loop: a student learns a set from its teacher's answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.carried import carried_answers, require_no_teacher
from distill.data.images import Images
from distill.files import load_state, save_state
from distill.judge import Judge, mean_answered
from distill.learner import Learner
from distill.lesson_key import key_at_any_rate, lesson_key
from distill.lessons import Lessons, as_teacher, check_images, check_lesson, contract_of
from distill.loop import Loop
from distill.losses import Losses
from distill.memory import free_memory, is_out_of_memory, learn_in_parts
from distill.models import Classifier, as_found
from distill.models.classifier import on_device
from distill.models.wrapping import as_student
from distill.options import DistillOptions
from distill.own import MakeOptimiser, OwnTraining, eager_step
from distill.ranges import require_options
from distill.replaying import is_known, may_replay
from distill.restoring import restore
from distill.result import DistillResult
from distill.runtime import Machine, Runtime
from distill.safeguard import REMEDY, Safeguard, weights_back_on_failure
from distill.sets.transfer_set import TransferSet
from distill.team import SOLO, Team
from distill.team_layers import over_all, sum_of
from distill.tracking import Logger
from distill.update import StudentState, Update, one_cycle
from distill.views import forget_answers
from synthesis_kernels.backend import describe_forms, free_cycles, random_apart
from synthesis_kernels.choices import Way
from synthesis_kernels.divergence import divergence, same_decision
from synthesis_kernels.step import GRAPH_EARNS

STATE = "student.state"
CHECK = 50
"""Steps between two looks at the figures, and at held-out images."""


def forget(folder: Path) -> None:
    """Delete what a distillation keeps in its folder until its student is saved; the state last, so
    that after a kill the rest is known by it.
    """
    forget_answers(folder)
    (folder / STATE).unlink(missing_ok=True)


def distill(
    student: Classifier | nn.Module,
    data: TransferSet | Images,
    teacher: Classifier | nn.Module | None = None,
    options: DistillOptions = DistillOptions(),
    folder: str | Path | None = None,
    runtime: Runtime = Runtime(),
    *,
    losses: Losses | None = None,
    optimiser: MakeOptimiser | None = None,
    log: Logger | None = None,
    team: Team = SOLO,
) -> DistillResult:
    """Train `student` on views of the images, each labelled by the teacher (or, if the options say
    so, by the data).

    The images may be a transfer set or any others; they are resized, and made grey or coloured, as
    the student takes them. A teacher may be missing where no loss asks one. Where the set carries
    the answers to the views that the options want, these are taken, and none is asked. The student
    is trained in place and returned in evaluation mode. With a `folder`, a killed or interrupted
    run goes on where it was when it is called again with the same arguments, and `log.jsonl` there
    records it; stopped, it leaves the student with the weights that it came with. The last state
    stays for the caller to `forget` once the student is saved. A student that an update breaks goes
    back to its last good state and learns on at a lower rate; a batch that memory does not suffice
    for is learnt in parts.

    From Python, `losses` take the place of `options.loss`: names, or functions of a batch, and
    their weights. `optimiser` makes one of the parameters, and its rates follow the schedule.
    `log` gets the figures of the log: any object with `log(figures, step)`. Where each batch is
    shared by a `team` (see `team_of`), all its processes make this call, and the first one writes.
    """
    check_images(data)
    require_options(options, DistillOptions, "options")
    require_options(runtime, Runtime, "runtime")
    team.check(options.batch, "distillation.batch")
    teacher = None if teacher is None else as_teacher(teacher, data)
    student = as_student(student, contract_of(teacher, data))
    check_lesson(student, data, teacher, options)
    if teacher is None:
        require_no_teacher(student, data, options, losses)
    elif carried_answers(data, teacher, options, losses) is not None:
        teacher = None  # the set's answers take its place
    own = OwnTraining(losses, optimiser)
    machine = runtime.resolve(options.steps).of_team(team)
    if optimiser is not None:
        machine = replace(machine, step=eager_step(runtime))
    free_cycles(machine.device)
    with (
        random_apart(runtime.seed, machine.device),
        as_found(teacher),
        weights_back_on_failure(student, folder is not None),
    ):
        runtime.say(describe_forms(machine.device))
        if teacher is not None:
            teacher = on_device(teacher, machine.device).eval().requires_grad_(False)
        place = Path(folder) if folder is not None else None
        training = _Training(student, data, teacher, options, place, runtime, machine, own)
        training.resume()
        with over_all(training.learner, team):
            training.run(log)
        return training.result()


class _Training:
    """One distillation: what learns, what it is taught with, and where its state is kept."""

    def __init__(
        self,
        student: Classifier,
        data: TransferSet | Images,
        teacher: Classifier | None,
        options: DistillOptions,
        folder: Path | None,
        runtime: Runtime,
        machine: Machine,
        own: OwnTraining,
    ) -> None:
        team = machine.processes
        self.team = team
        self.student = student
        self.teacher = teacher
        self.options = options
        self.folder = folder
        self.quiet = runtime.quiet or not team.is_first
        self.machine = machine
        device = machine.device
        self.may_replay = may_replay(runtime.step, device, student) and own == OwnTraining()
        seed = runtime.seed
        answers = carried_answers(data, teacher, options, own.losses)
        self.learner = Learner(
            student.to(device),
            teacher,
            options,
            machine.precision,
            seed,
            answered=answers is not None,
            losses=own.losses,
        )
        self.learner.share(team)
        self.state = StudentState(student, device, seed, options, self.learner, own.optimiser)
        self.learner.train()
        self.guard = Safeguard(self.state)
        self.number = torch.zeros((), dtype=torch.int64, device=device)  # of the step
        self.key = ""
        if folder is not None:
            self.key = lesson_key(student, data, teacher, options, runtime, own, team)
        self.lessons = Lessons(data, self.learner, seed, device, answers)
        self.update = self._new_update()
        self.judge: Judge | None = None
        if options.patience:
            self.judge = Judge(self.lessons, teacher, machine.precision)

    def resume(self) -> None:
        """Go on where an earlier run was stopped, if there was one."""
        if self.folder is None:
            return
        file = self.folder / STATE
        saved = self.team.told(lambda: load_state(file, self.key, key_at_any_rate(self.key)))
        if saved is not None:
            restore(self.state, saved, file)
            self.guard.keep()

    def run(self, logger: Logger | None = None) -> None:
        """All steps that are left, or as many as patience allows."""
        state = self.state
        loop = Loop(
            "distilling",
            self.options.steps,
            self.quiet,
            state.step,
            save=self._save if self.folder else None,
            log=self.folder / "log.jsonl" if self.folder and self.team.is_first else None,
            seconds=state.seconds,
            work="distillation",
            logger=logger if self.team.is_first else None,
            team=self.team,
        )
        if state.step < self.options.steps:
            self.lessons.ask_beforehand(self.quiet, self.folder)
            self._renew_update()  # in whose steps the teacher may be asked no more
        self.loop = loop
        with loop:
            while not self._done:
                answered = self._step_or_split()
                line = None
                if answered and self._is_time_to_look:
                    line = self._look(*answered)
                loop.advance(state.step, line, keep=state.step == self.options.steps)
        state.seconds = loop.seconds
        self.update.forget()

    def result(self) -> DistillResult:
        """The student as it is kept, and what was seen of it."""
        state = self.state
        best = None
        if self.judge:
            self.student.load_state_dict(state.best)
            best = state.best_agreement
        elif state.average:
            self.student.load_state_dict(state.average.state_dict())
        self.student.eval()
        agreement = state.agreement.item()
        return DistillResult(self.student, state.seconds, agreement, best, state.step, key=self.key)

    @property
    def _done(self) -> bool:
        patience = self.options.patience
        if patience and self.state.checks_since_best >= patience:
            return True
        return self.state.step >= self.options.steps

    @property
    def _is_time_to_look(self) -> bool:
        return not self.state.step % CHECK or self.state.step >= self.options.steps

    def _step_or_split(self) -> tuple[Tensor, Tensor] | None:
        """One update; None where memory did not suffice, and smaller parts are to be tried."""
        try:
            return self._step()
        except (MemoryError, RuntimeError) as error:
            in_parts = self.options.batch >= 4 * self.state.parts and self.team.world == 1
            if not is_out_of_memory(error) or not in_parts:
                raise
        self._split()
        return None

    def _step(self) -> tuple[Tensor, Tensor]:  # (B, K, *places) twice
        """One update; the student's logits before it, and the answers that it learnt from."""
        state = self.state
        steps = self.options.steps
        if self.learner.full_phase and state.step / steps >= self.learner.full_phase_end:
            self.learner.full_phase = False
            self._renew_update()  # another step, to be captured anew
        state.set_share(one_cycle(state.step, steps, self.options.warmup))
        logits, answers, agreement = self.update(self.number.fill_(state.step))
        if self.options.ema:
            state.follow(self.options.ema)
        state.agreement.lerp_(agreement, max(0.02, 1 / state.step))
        return logits, answers

    def _look(self, logits: Tensor, answers: Tensor) -> str | None:  # (B, K, *places) twice
        """Log and tell how the student does; of one that an update has broken, go back instead."""
        state = self.state
        loss = mean_answered(divergence(answers, logits), answers, self.team)
        self.team.require_alike(lambda: [sum_of(self.learner)], f"step {state.step}")
        if not self.guard.is_whole(loss):
            self._mend()
            return None
        self.guard.keep()
        figures = {"agreement": state.agreement.item(), "loss": loss.item()}
        if self.judge:
            figures["held_out_agreement"] = self.judge.look(state)
        self.loop.record("distill", figures, REMEDY, f"step {state.step}", step=state.step)
        self.loop.track(figures, state.step)
        return "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())

    def _mend(self) -> None:
        """Go back to the last good student, and lower the rate; a few times, then stop."""
        if self.guard.mend(self.loop):
            return
        file = self._store(self.loop.seconds, key_at_any_rate(self.key)) if self.folder else None
        raise self.guard.error(file)

    def _split(self) -> None:
        """From the last good student on, learn each batch in twice as many parts."""
        self.guard.split(self.loop, self.options.batch)
        self._renew_update()
        free_memory(self.machine.device)

    def _renew_update(self) -> None:
        self.update.forget()
        self.update = self._new_update()

    def _new_update(self) -> Update:
        way: Way = "replay" if self._replays else self.machine.step
        return Update(self.state, self._lesson, way, self.learner, self.team)

    @property
    def _replays(self) -> bool:
        """Whether the first steps' operations may run again: where steps are many, and all that
        runs in one is known.
        """
        if not self.may_replay or self.options.steps < GRAPH_EARNS or self.team.world > 1:
            return False
        beforehand = bool(self.lessons.bank) and not self.learner.needs("teacher")
        asked = [] if beforehand or self.teacher is None else [self.teacher]
        return all(map(is_known, [self.learner, *asked]))

    def _lesson(self, number: Tensor) -> tuple[Tensor, ...]:  # () -> (), (B, K, *places) twice, ()
        """A batch drawn, shown and answered, its loss and agreement: a captured step has it all."""
        lesson = self.lessons.draw(number, self.state.generator)
        if self.state.parts == 1:
            loss, logits, answers = self.learner(*lesson)
        else:
            loss, logits, answers = learn_in_parts(self.learner, lesson, self.state.parts)
        alike = same_decision(answers, logits).float()
        return loss, logits, answers, mean_answered(alike, answers, self.team)

    def _save(self, seconds: float) -> Path:
        """Save the student as it is, or as it was last good."""
        if not self.guard.is_whole():
            self._mend()
        return self._store(seconds, self.key)

    def _store(self, seconds: float, key: str) -> Path:
        assert self.folder is not None, "without a folder nothing is saved"
        self.state.seconds = seconds
        if self.team.is_first:
            save_state(self.folder / STATE, key, self.state.state_dict())
        return self.folder / STATE
