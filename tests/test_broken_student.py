"""Students that an update breaks, and steps that have too little memory."""

from dataclasses import replace

import pytest
import torch
from collecting import linear_teacher
from many_calls import SYNTHESIS, toy_teacher
from torch import nn

from distill import DistillOptions, Images, build_classifier, distill
from distill.files import read_log
from distill.models import ModelSpec
from distill.runtime import Runtime
from distill.update import StudentState
from inversion import synthesize
from inversion.parts.matching import Matching
from inversion.shards import find_broken
from synthesis_kernels.errors import EchosetError

QUIET = Runtime(device="cpu", quiet=True)
EXACT = replace(QUIET, precision="float32")
OPTIONS = DistillOptions(steps=24, batch=16, optimiser="sgd", learning_rate=0.01, views_per_image=0)
WILD = {"optimiser": "adamw", "learning_rate": 1e30, "steps": 12, "batch": 16}


@pytest.fixture(autouse=True)
def _looking_often(monkeypatch):
    monkeypatch.setattr("distill.train.CHECK", 10)


@pytest.fixture(scope="module")
def lesson():
    teacher = linear_teacher()
    pixels = torch.randint(0, 256, (48, 1, 12, 12), generator=torch.Generator().manual_seed(0))
    return teacher, Images(pixels.byte(), torch.zeros(48).long(), "noise")


def fresh():
    return build_classifier(ModelSpec("convnet-4", channels=1, size=12, classes=4), seed=1)


def teach(lesson, options, **more):
    teacher, data = lesson
    return distill(fresh(), data, teacher, options, runtime=QUIET, **more)


def breaking(monkeypatch, steps):
    """Have updates at these steps leave a weight that is no number, at any rate."""
    usual = StudentState.set_share

    def set_share(self, share):
        usual(self, share)
        if self.step in steps:
            steps.remove(self.step)
            with torch.no_grad():
                next(self.student.parameters()).view(-1)[0] = float("nan")

    monkeypatch.setattr(StudentState, "set_share", set_share)


def test_a_student_that_breaks_once_goes_back_and_learns_on(lesson, tmp_path, monkeypatch):
    breaking(monkeypatch, [14])
    result = teach(lesson, OPTIONS, folder=tmp_path)
    assert all(tensor.isfinite().all() for tensor in result.student.state_dict().values())
    assert result.steps == 24
    events = read_log(tmp_path / "log.jsonl")
    assert [(each["event"], each["step"]) for each in events] == [
        ("distill", 10),
        ("broken", 20),
        ("distill", 20),
        ("distill", 24),
    ]
    assert events[1]["back_to"] == 10 and events[1]["scale"] == 0.25


def test_the_last_update_may_break_the_student_too(lesson, monkeypatch):
    breaking(monkeypatch, [23])
    result = teach(lesson, OPTIONS)
    assert all(tensor.isfinite().all() for tensor in result.student.state_dict().values())


def test_a_student_that_always_breaks_stops_and_goes_on_at_a_lower_rate(lesson, tmp_path):
    wild = DistillOptions(**WILD)
    with pytest.raises(
        EchosetError, match=r"5 times in a row.*lower the learning rate.*student\.state"
    ):
        teach(lesson, wild, folder=tmp_path)
    assert len(read_log(tmp_path / "log.jsonl")) == 4
    with pytest.raises(EchosetError, match="of its learning rate"):  # and it goes on being lowered
        teach(lesson, wild, folder=tmp_path)
    lower = DistillOptions(**WILD | {"learning_rate": 1e-3})
    result = teach(lesson, lower, folder=tmp_path)
    assert result.steps == 12
    anew = teach(lesson, lower)
    assert result.student.weight_hash() == anew.student.weight_hash()
    other = DistillOptions(**WILD | {"learning_rate": 1e-2})
    with pytest.raises(EchosetError, match="was left by a stopped run with other options"):
        teach(lesson, other, folder=tmp_path)


def test_where_a_student_broke_it_goes_on_from_its_last_good_step(lesson, tmp_path, monkeypatch):
    breaking(monkeypatch, [14] * 5)
    with pytest.raises(EchosetError, match=r"it was at step 10"):
        teach(lesson, OPTIONS, folder=tmp_path)
    monkeypatch.undo()
    result = teach(lesson, OPTIONS, folder=tmp_path)
    assert result.steps == 24 and read_log(tmp_path / "log.jsonl")[-1]["step"] == 24


def lacking_memory(monkeypatch, most):
    """A student's network that has memory for so many images at once."""
    usual = nn.Conv2d.forward

    def forward(self, images):
        if self.training and len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return usual(self, images)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)


def test_a_batch_without_memory_is_learnt_in_parts(lesson, tmp_path, monkeypatch, capsys):
    teacher, data = lesson
    options = replace(OPTIONS, steps=12)
    without_norm = ModelSpec("convnet-gn-4", channels=1, size=12, classes=4)
    student = build_classifier(without_norm, seed=1)
    whole = distill(student, data, teacher, options, runtime=EXACT)
    lacking_memory(monkeypatch, most=4)
    aloud = replace(EXACT, quiet=False)
    student = build_classifier(without_norm, seed=1)
    result = distill(student, data, teacher, options, folder=tmp_path, runtime=aloud)
    assert [event.get("parts") for event in read_log(tmp_path / "log.jsonl")] == [2, 4, None, None]
    said = capsys.readouterr().err
    assert said.count("is learnt in 4 parts") == 1 and "--distillation.batch 4" in said
    pairs = zip(whole.student.parameters(), result.student.parameters(), strict=True)
    for one, other in pairs:  # the same but for the order of sums
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_batch_that_cannot_be_smaller_is_an_error(lesson, monkeypatch):
    lacking_memory(monkeypatch, most=1)
    with pytest.raises(torch.OutOfMemoryError):
        teach(lesson, OPTIONS)


def test_a_synthesis_that_breaks_stops_and_keeps_no_broken_state(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.loop.Every.__call__", lambda self: True)
    usual = Matching.read_back

    def read_back(self, figures):  # the third call's last update leaves a weight that is no number
        if self.state.call == 3:
            with torch.no_grad():
                next(self.state.generator.parameters()).view(-1)[0] = float("nan")
        return usual(self, figures)

    monkeypatch.setattr(Matching, "read_back", read_back)
    options = replace(SYNTHESIS, calls=6)
    with pytest.raises(EchosetError, match=r"job\.generator.* is not finite after call 3.*--out"):
        synthesize(toy_teacher(), options, tmp_path, QUIET)
    (file,) = tmp_path.glob(".*.state")
    monkeypatch.undo()
    with open(file, "rb") as state:
        state.readline()
        content = torch.load(state)["state"]
    assert content["job"]["counters"][0] == 2 and not find_broken(content)
    made = synthesize(toy_teacher(), options, tmp_path, QUIET)
    again = synthesize(toy_teacher(), options, tmp_path / "again", QUIET)
    assert torch.equal(made.images, again.images)
