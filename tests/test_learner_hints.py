"""Hints in a student's lessons: which fit, how large they are, and after a kill."""

from dataclasses import replace
from weakref import WeakSet

import pytest
import torch
from learning import SHORT, few_digits, run, student_like

from distill.learner import Learner
from distill.lessons import Lessons
from distill.train import _Training


@pytest.fixture(scope="module")
def data():
    return few_digits()


@pytest.mark.parametrize(
    "model", ["wrn-10-1", "lenet5", "cifar-vgg11"]
)  # of other maps than the teacher's
@pytest.mark.parametrize("beside", [{"hinton": 1.0}, {"bss": 1.0}, {"dml": 1.0}])
def test_hints_come_with_the_lesson_where_they_fit(teacher, data, monkeypatch, model, beside):
    """Then the teacher is not asked again, and the loss is that of live hints."""
    options = replace(SHORT, steps=40, loss=beside | {"hints": 20.0})
    learner = Learner(student_like(teacher, model), teacher, options)
    lessons = Lessons(data, learner, 0, torch.device("cpu"))
    lessons.ask_beforehand(quiet=True)
    inputs = lessons.draw(torch.tensor(10), torch.Generator().manual_seed(0))
    answers, *hints = learner.ask_for_hints(inputs[0])
    torch.testing.assert_close(inputs[1], answers, rtol=1e-3, atol=1e-3)
    for banked, live in zip(inputs[5:], hints, strict=True):
        torch.testing.assert_close(
            banked.float(), live.float(), rtol=0.02, atol=0.02 * live.float().std().item()
        )
    banked, live = learner.eval()(*inputs)[0], learner(*inputs[:5])[0]
    torch.testing.assert_close(banked, live, rtol=0.01, atol=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(learner, "_ask_teacher", None)
        learner(*inputs)
    size = sum(part.nbytes for part in lessons.bank[1:])
    learner.options = replace(options, hints_gib=(size - 1) / 2**30)
    asking = Lessons(data, learner, 0, torch.device("cpu"))
    asking.ask_beforehand(quiet=True)
    assert not asking.bank and len(asking.draw(torch.tensor(0), torch.Generator())) == 5


def test_hints_of_large_images_are_made_small_part_by_part(teacher, monkeypatch):
    alive, most = WeakSet(), []

    def ask(images):
        maps = [torch.rand(len(images), 16, 56, 56), torch.rand(len(images), 32, 7, 7)]
        alive.update(maps)
        most.append(len(alive))
        return images.mean((2, 3)), maps, torch.rand(len(images), 32)

    learner = Learner(student_like(teacher), teacher, replace(SHORT, loss={"hints": 1.0}))
    monkeypatch.setattr(learner, "_ask_teacher", ask)
    answers, *hints = learner.ask_for_hints(torch.rand(100, 3, 224, 224))
    assert len(most) > 2 and max(most) <= 4 and len(answers) == 100
    assert [hint.shape[1:] for hint in hints] == [(16, 7, 7), (32, 7, 7), (32, 1, 1)]


def test_a_run_with_hints_that_was_killed_asks_for_them_again(teacher, data, tmp_path, monkeypatch):
    """No file holds them, and the student is the one that would have been."""
    options = replace(SHORT, steps=20, loss={"hinton": 1.0, "hints": 1.0})
    whole = run(teacher, data, options).student.weight_hash()
    asked = []
    ask = Learner.ask_for_hints
    monkeypatch.setattr(
        Learner, "ask_for_hints", lambda *given: asked.append(len(given[1])) or ask(*given)
    )

    class Killed(Exception):
        pass

    def step(training):
        if training.state.step == 10:
            training._save(1.0)
            raise Killed
        return usual(training)

    usual = _Training._step
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(_Training, "_step", step)
        run(teacher, data, options, folder=tmp_path)
    assert [path.name for path in tmp_path.glob("*.state")] == ["student.state"]
    first = list(asked)
    asked.clear()
    assert run(teacher, data, options, folder=tmp_path).student.weight_hash() == whole
    assert sum(first) > len(data) and asked == first
