"""The adversarial student's step, captured whole, on a CUDA that is only pretended."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_options
from test_step import Graph, cuda  # noqa: F401 - a fixture
from test_waits import later_options

from distill.models.frozen import Frozen
from inversion import plan
from inversion.parts.adversary import DrawStep, adversary_steps
from inversion.parts.state import SynthesisState
from inversion.parts.student_step import StudentStep

CPU = torch.device("cpu")


def mixing_options():
    """Views of two images, made anew at every step from other images in each call."""
    options = tiny_options()
    return replace(options, views=replace(options.views, cutmix=0.5, mixup=0.5))


def taught(teacher, options, step):
    """A student after three calls on a full buffer, and what was told of each."""
    state = SynthesisState(teacher, plan(options, 10)[0], options, CPU)
    frozen = Frozen(teacher)
    train = StudentStep(state.adversary, 4.0, torch.float32, learner=state.learner)
    learn = DrawStep(train, frozen, state, options, torch.float32, step)
    if step != "eager":
        Graph.captured = learn._run
    random = torch.Generator().manual_seed(0)
    buffer = state.buffer
    buffer.images.random_(0, 256, generator=random)
    buffer.logits.normal_(generator=random)
    buffer.answers.normal_(generator=random)
    buffer.filled[:-1] = True
    buffer.priority.uniform_(generator=random)
    told = []
    for state.call in range(3):
        told.append(adversary_steps(learn))
    return state, told


@pytest.mark.parametrize("options", [tiny_options(), later_options(), mixing_options()])
def test_a_captured_step_draws_and_learns_as_an_eager_one(teacher, monkeypatch, cuda, options):  # noqa: F811
    monkeypatch.setattr(Graph, "register_generator_state", lambda *_: None, raising=False)
    monkeypatch.setattr(Graph, "captured", None)
    ours, told = taught(teacher, options, "graph")
    theirs, expected = taught(teacher, options, "eager")
    assert Graph.captured.graph.replays == 3 * options.adversary.steps - 1
    assert ours.adversary.step == theirs.adversary.step == 3 * options.adversary.steps
    for one, other in zip(told, expected, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name])
    for name, value in theirs.buffer.state_dict().items():
        assert torch.equal(getattr(ours.buffer, name), value), name
    assert torch.equal(ours.random.get_state(), theirs.random.get_state())
    student = theirs.adversary.student.state_dict()
    for name, value in ours.adversary.student.state_dict().items():
        assert torch.equal(value, student[name]), name
