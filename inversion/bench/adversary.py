"""What is timed: one step of the adversarial student, as a call of the synthesis makes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from distill.models.frozen import Frozen
from distill.views import ask, to_input
from inversion.bench.limits import count
from inversion.bench.replays import Work
from inversion.bench.timing import Bench
from inversion.jobs import plan
from inversion.options import SynthesisOptions
from inversion.parts.adversary import DrawStep
from inversion.parts.state import SynthesisState
from inversion.parts.student_step import StudentStep


def adversary_times(bench: Bench) -> dict[str, Any]:
    """A draw by priority, views, the teacher's answers, an update, and what is written back."""
    times = bench.compare(ours=our_step(bench))
    return times | count(our_step(bench.eagerly()))


def our_step(bench: Bench) -> Work:
    """On a buffer that is full of noise."""
    options = adversary_options(bench)
    teacher, _ = bench.classifiers(tuned=True)
    teacher = teacher.eval().requires_grad_(False)
    frozen = Frozen(teacher, bench.precision)
    (job,) = plan(options, teacher.spec.classes)
    state = SynthesisState(teacher, job, options, bench.device, bench.precision)
    temperature = options.adversary.temperature
    train = StudentStep(state.adversary, temperature, bench.precision, learner=state.learner)
    _fill(state, frozen, bench)
    state.adversary.student.train()
    return DrawStep(train, frozen, state, options, bench.precision, bench.step)


def adversary_options(bench: Bench) -> SynthesisOptions:
    """Of the synthesis, with the student and the batch that are measured."""
    run = bench.run
    usual = bench.options
    adversary = replace(usual.adversary, student=run.student, batch=run.batch)
    return replace(usual, adversary=adversary, images=run.images, shard_images=run.images)


def _fill(state: SynthesisState, teacher: Frozen, bench: Bench) -> None:
    """Put an image into every slot, whatever the teacher calls it."""
    buffer = state.buffer
    shape = buffer.images.shape
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device)
    buffer.images.copy_(images)
    for part in torch.arange(len(images), device=bench.device).split(500):
        buffer.logits[part] = ask(teacher, to_input(images[part]), bench.precision)
    buffer.filled[:-1] = True
    buffer.priority.fill_(1)
