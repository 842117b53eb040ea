"""How long a run takes, said early."""

import pytest
import torch
from conftest import last_json

from distill import Runtime, StudentOptions
from distill.loop import Loop
from distill.options import DistillOptions
from distill.outlook import Outlook, Part, describe, duration
from inversion import load_teacher
from inversion.cli.verbs.rehearsal import rehearse
from inversion.options import SynthesisOptions


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    time = [100.0]
    monkeypatch.setattr("distill.outlook.time.perf_counter", lambda: time[0])
    monkeypatch.setattr("distill.outlook.memory_taken", lambda: 1.25 * 2**30)
    return time


def watch(clock, seconds, total, **settings):
    """What is said of a loop whose steps take these seconds."""
    said = []
    outlook = Outlook("making", "call", said.append, **settings)
    for done, each in enumerate(seconds, settings.get("start", 0) + 1):
        clock[0] += each
        outlook.look(done, total)
    return said


def test_a_long_call_says_at_once_how_long_all_take(clock):
    (line,) = watch(clock, [8.0, 9.0, 7.0], 60)
    assert line == "making: about 8 minutes (60 calls of 8.0 s), memory about 1.2 GiB"


def test_short_steps_are_watched_for_a_second_after_the_first_one(clock):
    (line,) = watch(clock, [1.5] + [0.03] * 50, 2000)
    assert line.startswith("making: about 60 seconds (2,000 calls of 30 ms)")


def test_little_work_is_not_talked_about(clock):
    assert watch(clock, [0.1] * 30, 100) == []


def test_what_is_done_already_does_not_count_and_what_is_to_come_does(clock):
    (line,) = watch(clock, [10.0], 60, start=50)
    assert "(10 calls of 10 s)" in line
    (line,) = watch(clock, [10.0], 60, start=50, loops=3)
    assert "about 22 minutes (130 calls of 10 s)" in line
    (line,) = watch(clock, [10.0], 60, most=True)
    assert line.startswith("making: at most about 10 minutes")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(42, "42 seconds"), (720, "12 minutes"), (9000, "2.5 hours"), (864000, "10.0 days")],
)
def test_durations_are_rounded_as_people_say_them(seconds, said):
    assert duration(seconds) == said


def test_several_parts_stand_in_one_line():
    parts = [Part(60, "call", 8), Part(1000, "step", 0.03)]
    assert describe(parts) == "about 8 minutes (60 calls of 8.0 s and 1,000 steps of 30 ms)"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ssd-kd", "adversarial"])
def test_a_rehearsal_leaves_nothing_behind(recipe):
    teacher = load_teacher()
    before = teacher.weight_hash()
    state = torch.random.get_rng_state()
    options = SynthesisOptions(recipe=recipe, batch=16, calls=7)
    lesson = DistillOptions(steps=50, batch=8)
    student = StudentOptions("convnet-4")
    told = rehearse(teacher, options, student, lesson, Runtime(quiet=True))
    assert [(part.count, part.name) for part in told.parts] == [(7, "call"), (50, "step")]
    assert all(part.each > 0 for part in told.parts)
    assert told.memory > 2**27
    assert torch.equal(torch.random.get_rng_state(), state)
    assert teacher.weight_hash() == before


@pytest.mark.slow
def test_inspect_estimates_on_request(run):
    done = run("inspect", "--estimate", "--json")
    estimate = last_json(done)["estimate"]
    assert [part["name"] for part in estimate["parts"]] == ["call", "answer", "step"]
    assert "42 calls of" in done.stdout
    assert "memory about" in done.stdout


def test_a_loop_says_it_beside_its_progress(clock, capsys):
    with Loop("walking", 60, step="mile") as loop:
        for mile in range(1, 4):
            clock[0] += 8
            loop.advance(mile)
    assert capsys.readouterr().err.count("walking: about 8 minutes (60 miles of 8.0 s)") == 1
    with Loop("walking", 60, quiet=True) as loop:
        clock[0] += 8
        loop.advance(1)
    assert capsys.readouterr().err == ""
