"""The adversarial student: built, taught by draws from the buffer, and asked about held-out
images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.data.augment import make_views
from distill.learner import Learner
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.options import DistillOptions
from distill.students import build_student
from distill.team import SOLO, Team
from distill.update import one_cycle
from distill.views import Look, ask, look_in_parts, to_input
from inversion.options import SynthesisOptions
from inversion.parts.buffer import ReplayBuffer
from inversion.parts.sampling import draw_batch, record_visit
from inversion.parts.student_step import StudentStep
from synthesis_kernels.choices import Step
from synthesis_kernels.divergence import compare
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.step import Captured

if TYPE_CHECKING:
    from inversion.parts.state import SynthesisState

VISITED = ("priority", "weight", "disagreement", "trend", "visits")
"""Of a buffer, what a visit changes, where it is in memory."""
LONGER = 0.05
"""Share of the peak rate in calls beyond those planned, which a class that is short asks for."""


def build_adversary(
    teacher: Classifier,
    options: SynthesisOptions,
    seed: int = 0,
    precision: torch.dtype = torch.float32,
    own: Classifier | None = None,
) -> tuple[Classifier, Learner | None]:
    """The adversarial student, and what asks for and compares the teacher's hints where it learns
    by them. It is a copy of a user's `own` network where there is one.
    """
    run = options.adversary
    if own is None:
        student = build_student(run.student, teacher.contract, seed)
    else:
        student = copy.deepcopy(own).requires_grad_(True)
    if not run.hints:
        return student, None
    lesson = DistillOptions(loss={"hinton": 1.0, "hints": run.hints}, temperature=run.temperature)
    try:
        return student, Learner(student, teacher, lesson, precision, seed)
    except EchosetError as error:
        raise EchosetError(f"adversary.hints: {error}") from error


class DrawStep:
    """One draw from the buffer, learnt and written back. All of that is the step: where it is
    captured, a graph holds the draw, the views and the teacher's answers, too.
    """

    def __init__(
        self,
        train: StudentStep,
        teacher: Frozen,
        state: SynthesisState,
        options: SynthesisOptions,
        precision: torch.dtype,
        step: Step = "eager",
    ) -> None:
        """Where the step is captured, `train` is a part of it and has to be eager."""
        self.train = train
        self.teacher = teacher
        self.state = state
        self.options = options
        self.precision = precision
        self.pool = state.buffer.images
        self._run: Callable[..., tuple[Tensor, ...]] = self._learn
        if step != "eager":
            self._run = Captured(
                self._learn, self._tensors, step == "graph", generators=[state.random]
            )

    def begin(self) -> None:
        """Begin a call: choose the images that views are made of, which stay in one place."""
        buffer = self.state.buffer
        if not mixes(self.options) or self.options.adversary.views_per_image:
            return
        pool = buffer.to_mix(self.state.random)
        if self.pool is buffer.images:
            self.pool = pool
        else:
            self.pool.copy_(pool)

    def __call__(self) -> Tensor:  # ()
        """Agreement of student and teacher on the draw."""
        state = self.state.adversary
        run = self.options.adversary
        total = (self.options.calls - run.begins) * run.steps
        step = state.step
        share = one_cycle(step, total, warmup=0.0) if step < total else LONGER
        state.optimiser.set_share(share)
        device = self.pool.device
        number = torch.full((), step, device=device)
        call = torch.full((), self.state.call, device=device)
        progress = torch.full((), min(step / total, 1.0), device=device)
        (agreement,) = self._run(number, progress, call)
        # A replay does not count.
        state.step = step + 1
        return agreement

    # (), (), () -> ()
    def _learn(self, number: Tensor, progress: Tensor, call: Tensor) -> tuple[Tensor]:
        state = self.state
        buffer = state.buffer
        options = self.options
        run = options.adversary
        drawn, weights = draw_batch(
            buffer, run.batch, options.replay, progress, state.random, state.policy, call
        )
        team = state.team
        own = team.part(drawn)
        hints: list[Tensor] = []
        if run.views_per_image:
            which = torch.randint(
                run.views_per_image, (run.batch,), generator=state.random, device=drawn.device
            )
            seen, answers, hints = _stored_views(state, own, team.part(which), options)
        else:
            # Never the same view twice.
            view = number * run.batch + torch.arange(run.batch, device=drawn.device)
            seen = make_views(self.pool, own, team.part(view), options.views, state.seed)
            answers = ask(self.teacher, seen, self.precision)
        logits = self.train(seen, answers, team.part(weights), *hints)
        apart, agreed = compare(answers, logits)
        record_visit(buffer, drawn, team.gather(apart), weights)
        return (team.mean(agreed.mean()),)

    def _tensors(self) -> list[Tensor]:
        buffer = self.state.buffer
        visited = [getattr(buffer, name) for name in VISITED]
        return [*self.state.adversary.tensors(), *visited]


def adversary_steps(learn: DrawStep) -> dict[str, Tensor]:
    """Train the adversarial student on draws from the buffer, write priorities back, and ask the
    held-out slots.
    """
    state = learn.state
    buffer = state.buffer
    run = learn.options.adversary
    if not state.has_begun:  # once only: the answer has to come from the device
        state.has_begun = bool((buffer.filled & ~buffer.is_held_out).any())
    if not state.has_begun or state.call < run.begins:
        nothing = torch.zeros((), device=buffer.images.device)
        figures = {"agreement": nothing, "held_out_agreement": nothing}
        if state.policy:
            figures["reward"] = nothing
        return figures
    agreement = torch.zeros((), device=buffer.images.device)
    before = torch.zeros_like(agreement)
    if state.policy:
        state.policy.begin(state.random)
        before = ask_held_out(state, learn.precision)[1]
    state.adversary.student.train()
    learn.begin()
    for _ in range(run.steps):
        agreement += learn() / run.steps
    held_out_agreement, after = ask_held_out(state, learn.precision)
    figures = {"agreement": agreement, "held_out_agreement": held_out_agreement}
    if state.policy:
        figures["reward"] = (before.clamp_min(1e-6) / after.clamp_min(1e-6)).log()
        state.policy.learn(figures["reward"])
    return figures


def _stored_views(
    state: SynthesisState,
    drawn: Tensor,  # (B,)
    which: Tensor,  # (B,)
    options: SynthesisOptions,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The view of each image drawn that has this number, of those that the teacher has answered
    for, with its answers and hints.
    """
    buffer = state.buffer
    if mixes(options):
        seen = to_input(buffer.seen[drawn, which])
    else:
        seen = view_of(buffer, buffer.images, drawn, which, options, state.seed)
    hints = [each[drawn, which] for each in buffer.hints]
    return seen, buffer.answers[drawn, which], hints


def ask_views(
    buffer: ReplayBuffer,
    teacher: Frozen,
    state: SynthesisState,
    options: SynthesisOptions,
    precision: torch.dtype,
) -> None:
    """Store the teacher's answers to views of the newest images, but for those held out. Views that
    mix two images are stored, too: the other image may be replaced before they are used.
    """
    if not options.adversary.views_per_image:
        return
    look = look_in_parts(_look(state, teacher, precision), state.team)
    mixing = mixes(options)
    newest = torch.where(buffer.is_held_out[buffer.newest], buffer.capacity, buffer.newest)
    pool = buffer.to_mix(state.random) if mixing else buffer.images
    for view in range(options.adversary.views_per_image):
        seen = view_of(buffer, pool, newest, torch.full_like(newest, view), options, state.seed)
        if mixing:
            pixels = (seen * 255).round().to(torch.uint8)
            buffer.seen[newest, view] = pixels
            seen = to_input(pixels)
        for kept, new in zip([buffer.answers, *buffer.hints], look(seen), strict=True):
            kept[newest, view] = new
    for kept in (buffer.answers, buffer.seen, *buffer.hints):
        kept[-1] = 0


def _look(state: SynthesisState, teacher: Frozen, precision: torch.dtype) -> Look:
    """Asks the teacher for answers, and for its hints where the adversarial student learns them."""
    if state.learner:
        return state.learner.ask_for_hints
    return lambda images: [ask(teacher, images, precision)]


def ask_hints_again(
    buffer: ReplayBuffer,
    learner: Learner,
    options: SynthesisOptions,
    seed: int,
    team: Team = SOLO,
) -> None:
    """Fill the hints of a buffer that was restored: saved states hold none. They are asked for as
    many at once as at first, so that they come out the same.
    """
    look = look_in_parts(learner.ask_for_hints, team)
    answered = buffer.filled & ~buffer.is_held_out
    own = torch.arange(len(answered), device=answered.device)
    slots = torch.where(answered, own, buffer.capacity)
    padding = -len(slots) % options.batch
    slots = torch.cat([slots, slots.new_full((padding,), buffer.capacity)])
    for part in slots.split(options.batch):
        for view in range(options.adversary.views_per_image):
            if mixes(options):
                seen = to_input(buffer.seen[part, view])
            else:
                which = torch.full_like(part, view)
                seen = view_of(buffer, buffer.images, part, which, options, seed)
            for kept, new in zip(buffer.hints, look(seen)[1:], strict=True):
                kept[part, view] = new
    for kept in buffer.hints:
        kept[-1] = 0


def view_of(
    buffer: ReplayBuffer,
    pool: Tensor,
    slots: Tensor,
    which: Tensor,
    options: SynthesisOptions,
    seed: int,
) -> Tensor:  # (B, C, H, W)
    """The views of an image that the teacher answers for; the next image in its slot has others."""
    view = buffer.round[slots] * options.adversary.views_per_image + which
    return make_views(pool, slots, view, options.views, seed)


def mixes(options: SynthesisOptions) -> bool:
    """Whether the adversarial student sees views of two images at once."""
    return bool(options.views.mixup or options.views.cutmix)


def ask_held_out(state: SynthesisState, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Agreement of teacher and adversarial student on images it never trained on, and their mean
    divergence there, which is also each one's priority.
    """
    buffer = state.buffer
    student = state.adversary.student.eval()
    slots = buffer.to_ask()
    logits = ask(student, to_input(buffer.images[slots]), precision)
    filled = buffer.filled[slots]
    count = filled.sum().clamp_min(1)
    apart, agreed = compare(buffer.logits[slots], logits)
    held_out = filled & buffer.is_held_out[slots]
    buffer.priority[slots] = torch.where(held_out, apart, buffer.priority[slots])
    return (agreed * filled).sum() / count, (apart * filled).sum() / count
