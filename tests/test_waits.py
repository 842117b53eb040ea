"""A call of the synthesis waits for the device once, at its end, and a student's step not at all:
until then the host runs ahead, and the device has work. Counted on any machine.
"""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_options
from waits import Waits

from distill import DistillOptions, StudentOptions, build_student, load_images
from distill.own import OwnTraining
from distill.runtime import Machine, Runtime
from distill.train import _Training
from inversion import MNIST_SLICE, plan
from inversion.options import GeneratorOptions, ReplayOptions
from inversion.parts.matching import Matching
from inversion.parts.progress import Stopwatch, read_back
from inversion.recipes.adversarial import Adversarial
from synthesis_kernels.backend import kernel_form

CPU = torch.device("cpu")


def later_options():
    """What the CIFAR-10 configurations add to the published method."""
    options = tiny_options()
    return replace(
        options,
        generator=GeneratorOptions(width=8, latent=128, learning="plain", smooth=1.0),
        adversary=replace(options.adversary, views_per_image=2, hints=20.0),
        views=replace(options.views, cutmix=0.5, mixup=0.5),
    )


@pytest.fixture(autouse=True)
def _reference():
    """The native forms run on the CPU alone, and may look at what they are given."""
    with kernel_form("reference"):
        yield


def with_replay(**changes):
    return replace(tiny_options(), replay=ReplayOptions(**changes))


def recipe_of(teacher, options, kind=Matching):
    (job,) = plan(options, 10)
    return kind(teacher, job, options, Machine(CPU, torch.float32, "eager"))


@pytest.mark.parametrize(
    "options",
    [
        tiny_options(),
        later_options(),
        with_replay(sampling="policy"),
        with_replay(keep_all=True, balanced_targets=False, sampling="uniform"),
    ],
    ids=["published", "later", "policy", "keep all"],
)
def test_a_call_waits_once(teacher, options):
    recipe = recipe_of(teacher, options)
    for _ in range(3):  # the adversary comes in, optimisers make their state
        recipe.step()
    for _ in range(2):
        with Waits() as waits:
            recipe.step()
        assert waits.found == {"tolist": 1}


def test_a_call_of_the_adversarial_recipe_waits_once(teacher):
    recipe = recipe_of(teacher, tiny_options(), Adversarial)
    recipe.step()
    with Waits() as waits:
        recipe.step()
    assert waits.found == {"tolist": 1}


@pytest.mark.parametrize("held, waits", [(0, 1), (20, 1), (35, 2)])
def test_only_a_set_that_may_fill_is_asked_whether_it_did(teacher, held, waits):
    """A second set beside the full one lacks 40 − held, and a call brings 8."""
    options = replace(with_replay(replace_all=True), images=40, batch=8)
    recipe = recipe_of(teacher, options)
    state = recipe.state
    for _ in range(2):
        recipe.step()
    for buffer, count in ((state.buffer, 40), (state.staged, held)):
        buffer.filled[:count] = True
        buffer.filled[count:] = False
        buffer.note(count)
    with Waits() as counted:
        recipe.step()
    assert sum(counted.found.values()) == waits
    for buffer in (state.buffer, state.staged):
        assert buffer.held == int(buffer.filled[:-1].sum())
    assert sum(recipe.counts) == state.buffer.held == 40


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("loss", [{"hinton": 1.0}, {"hints": 20.0}, {"dml": 1.0}])
def test_a_step_of_a_student_waits_for_nothing(teacher, views, loss):
    options = DistillOptions(steps=200, batch=16, views_per_image=views, loss=loss)
    student = build_student(StudentOptions("convnet-4"), teacher.contract)
    data = load_images(MNIST_SLICE).chosen(torch.arange(32))
    machine = Machine(CPU, torch.float32, "eager")
    runtime = Runtime(quiet=True)
    training = _Training(student, data, teacher, options, None, runtime, machine, OwnTraining())
    training.lessons.ask_beforehand(quiet=True)
    training._step()
    with Waits() as waits:
        training._step()
    assert not waits.found


def test_everything_is_read_at_once():
    figures = {"taken": torch.tensor(3), "bn": torch.tensor(0.5)}
    counts, theta = torch.tensor([1, 5000]), torch.tensor([0.25])
    with Waits() as waits:
        values, rows = read_back(figures, counts, theta)
    assert values == {"taken": 3.0, "bn": 0.5} and rows == [[1.0, 5000.0], [0.25]]
    assert waits.found == {"tolist": 1}


def test_the_watch_reads_the_device_s_clock(monkeypatch):
    class Event:
        clock = 0.0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.clock += 1500.0
            self.at = Event.clock

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = Stopwatch(torch.device("cuda"))
    watch.mark()
    watch.mark()
    assert watch.seconds() == [1.5, 1.5]
    watch = Stopwatch(CPU)
    watch.mark()
    assert 0 <= watch.seconds()[0] < 5


def test_what_waits_is_counted():
    """The counter itself, on everything that it knows."""
    x, places = torch.arange(4.0), torch.tensor([0])
    mask = x > 1
    ways = [
        lambda: x[0].item(),
        lambda: bool(mask.any()),
        lambda: int(x.sum()),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: x[mask],
        lambda: mask.nonzero(),
        lambda: torch.where(mask),
        lambda: x.__setitem__(places, 1.0),
        lambda: x.__setitem__(mask, x.clone()[:2]),
        lambda: torch.tensor([1.0, 2.0]),
    ]
    for number, way in enumerate(ways):
        with Waits() as waits:
            way()
        assert sum(waits.found.values()) == 1, number
    with Waits() as waits:
        torch.where(mask, x, 0).sum()
        x.index_fill_(0, places, 1)
        x[places] = x[1:2].clone()
    assert not waits.found
