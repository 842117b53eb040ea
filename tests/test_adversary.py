"""The adversarial student: what it learns from, when, and by which figures."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import assert_learnt
from synthesizing import CPU, assert_equal, one_call, store

from distill.data.augment import make_views
from distill.models.frozen import Frozen
from distill.views import to_input
from inversion import plan
from inversion.options import (
    ReplayOptions,
)
from inversion.parts import adversary as synthesis
from inversion.parts.adversary import DrawStep, adversary_steps
from inversion.parts.adversary import ask_held_out as _ask_held_out
from inversion.parts.sampling import record_visit
from inversion.parts.state import SynthesisState
from inversion.parts.student_step import StudentStep


def test_an_adversary_by_hints_learns_what_a_student_by_hints_does(teacher, tiny):
    options = replace(tiny, adversary=replace(tiny.adversary, views_per_image=2, hints=5.0))
    state, images = (
        SynthesisState(teacher, plan(options, 10)[0], options, CPU),
        torch.rand(16, 1, 28, 28),
    )
    learner, even = state.learner, torch.ones(16)
    answers, *hints = learner.ask_for_hints(images)
    step = StudentStep(state.adversary, learner.options.temperature, torch.float32, learner=learner)
    twin = copy.deepcopy(learner)
    nothing = torch.empty(0)
    loss, *_ = twin.train()(images, answers, nothing, torch.zeros(()), nothing, *hints)
    loss.backward()
    learner.train()
    step(images, answers, even, *hints)
    for mine, theirs in zip(learner.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert learner.parts["HintReaders"].layers[0].weight.grad.abs().max() > 0


def test_an_adversary_waits_for_its_first_lesson(teacher, tiny):
    late = replace(
        tiny,
        objective=replace(tiny.objective, adversary_after=4),
        adversary=replace(tiny.adversary, begins=3),
    )
    fresh = SynthesisState(teacher, plan(late, 10)[0], late, CPU).adversary.student
    waiting, begun = (one_call(teacher, late, calls).adversary for calls in (3, 4))
    assert waiting.step == 0 and begun.step == late.adversary.steps
    for mine, untouched in zip(waiting.student.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, untouched)


def test_uniform_sampling_changes_the_adversary(teacher, tiny):
    uniform = replace(tiny, replay=ReplayOptions(sampling="uniform"))
    students = [
        one_call(teacher, options, 4).adversary.student.weight_hash() for options in (tiny, uniform)
    ]
    assert students[0] != students[1]


def test_the_adversarial_student_learns_in_calls_beyond_those_planned(teacher, tiny):
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    state.buffer.images[:-1], state.buffer.filled[:-1] = (
        torch.randint(0, 256, (30, 1, 28, 28)).byte(),
        True,
    )
    state.adversary.step = tiny.calls * tiny.adversary.steps
    before = [parameter.detach().clone() for parameter in state.adversary.student.parameters()]
    train = StudentStep(state.adversary, 20.0, torch.float32)
    adversary_steps(DrawStep(train, Frozen(teacher), state, tiny, torch.float32))
    assert_learnt(state.adversary.student, before)


def test_each_step_of_the_adversary_is_weighted_scheduled_and_remembered(
    teacher, tiny, monkeypatch
):
    adversary, replay = (
        replace(tiny.adversary, begins=2, learning_rate=0.02),
        ReplayOptions(alpha=0.5, beta=0.25),
    )
    objective = replace(tiny.objective, adversary_after=3)
    options = replace(tiny, adversary=adversary, replay=replay, objective=objective)
    state, frozen, given, visits = (
        SynthesisState(teacher, plan(options, 10)[0], options, CPU),
        Frozen(teacher),
        [],
        [],
    )
    store(state, frozen, options, torch.randint(256, (30, 1, 28, 28), dtype=torch.uint8))
    buffer, odd = state.buffer, torch.arange(16)[:, None] % 2 > 0
    buffer.priority[:-1] = torch.rand(30) + 0.1
    state.call, state.adversary.step = 4, 7

    def train(images, answers, importance):
        logits = torch.where(odd, -answers, answers / 2)  # every second decision is another one
        given.append(
            (
                images,
                answers,
                importance,
                logits,
                state.adversary.optimiser.param_groups[0]["lr"].item(),
            )
        )
        state.adversary.step += 1
        return logits

    def remember(buffer, drawn, apart, importance):
        visits.append((drawn, apart, importance, buffer.priority.clone()))
        record_visit(buffer, drawn, apart, importance)

    monkeypatch.setattr(synthesis, "record_visit", remember)
    figures = adversary_steps(DrawStep(train, frozen, state, options, torch.float32))
    assert len(given) == 3 and figures["agreement"].item() == pytest.approx(0.5)
    allowed = buffer.filled & ~buffer.is_held_out
    for step, (lesson, visit) in enumerate(zip(given, visits, strict=True), start=7):
        (images, answers, importance, logits, rate), (drawn, apart, kept, priority) = lesson, visit
        assert rate == pytest.approx(
            0.02 * 0.5 * (1 + math.cos(math.pi * (step + 0.5) / 36)), rel=1e-5
        )  # (14 − 2)·3 steps
        view = step * 16 + torch.arange(16)
        torch.testing.assert_close(
            images, make_views(buffer.images, drawn, view, options.views, state.seed)
        )
        torch.testing.assert_close(answers, teacher(images), rtol=1e-3, atol=1e-3)
        chances = (priority + 1e-3).sqrt() * allowed
        exact = (chances / chances.sum() * allowed.sum())[drawn] ** -(0.25 + 0.75 * step / 36)
        torch.testing.assert_close(importance, exact / exact.max(), rtol=1e-4, atol=1e-5)
        assert torch.equal(kept, importance)
        log_p, log_q = answers.log_softmax(1), logits.log_softmax(1)
        torch.testing.assert_close(
            apart, (log_p.exp() * (log_p - log_q)).sum(1), rtol=1e-3, atol=1e-4
        )


def test_held_out_images_are_asked_of_the_student_as_it_stands(teacher, tiny):
    """Asking leaves nothing in it, and in the buffer their priorities alone; empty slots don't
    count.
    """
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    buffer, student = state.buffer, state.adversary.student
    buffer.images[:-1] = torch.randint(256, (30, 1, 28, 28), dtype=torch.uint8)
    buffer.filled[:-1] = True
    buffer.filled[torch.where(buffer.is_held_out)[0][:2]] = False
    held = torch.where(buffer.is_held_out & buffer.filled)[0]
    with torch.no_grad():
        own = student.eval()(to_input(buffer.images[held]))
    assert len(held) == 8
    buffer.logits[held] = torch.cat([20 * own[:6], -20 * own[6:]])  # six are decided alike
    buffer.priority[:-1] = torch.arange(30.0)
    before = {name: value.clone() for name, value in student.train().state_dict().items()}
    log_p, log_q = buffer.logits[held].log_softmax(1), own.log_softmax(1)
    apart, expected = (log_p.exp() * (log_p - log_q)).sum(1), buffer.priority.clone()
    expected[held] = apart
    agreement, mean = _ask_held_out(state, torch.float32)
    assert agreement == 0.75 and mean.item() == pytest.approx(apart.mean().item(), rel=1e-3)
    torch.testing.assert_close(buffer.priority, expected, rtol=1e-3, atol=1e-4)
    assert_equal(dict(student.state_dict()), before)
