"""What only a CUDA device can show: steps that never wait for the host, and graphs that compute
what eager steps do.
"""

import io
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import tiny_options
from on_cuda import EITHER, cuda_teacher, later_options

from distill import DistillOptions, StudentOptions, build_student, load_images
from distill.learner import Learner
from distill.lessons import Lessons
from distill.models.frozen import Frozen
from distill.runtime import Machine
from distill.update import StudentState, Update, one_cycle
from inversion import MNIST_SLICE, plan
from inversion.options import ReplayOptions
from inversion.parts.adversary import DrawStep, adversary_steps
from inversion.parts.call import Store, generator_call
from inversion.parts.inner import InnerLoop
from inversion.parts.matching import Matching
from inversion.parts.state import SynthesisState
from inversion.parts.student_step import StudentStep
from synthesis_kernels.backend import kernel_form, resolve_device
from synthesis_kernels.step import Captured

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def teacher():
    return cuda_teacher()


class Loop:
    """One shard's loop, call by call."""

    def __init__(self, teacher, step, options=None, precision=torch.float32):
        self.teacher, self.options, self.precision = teacher, options or tiny_options(), precision
        self.state = SynthesisState(
            teacher, plan(self.options, 10)[0], self.options, resolve_device("cuda"), precision
        )
        self.frozen = Frozen(teacher, precision)
        student, capacity = self.state.adversary.student, self.state.buffer.capacity
        self.inner = InnerLoop(
            self.frozen, self.state.generator, student, self.options, capacity, precision, 0, step
        )
        train = StudentStep(
            self.state.adversary,
            self.options.adversary.temperature,
            precision,
            learner=self.state.learner,
        )
        self.store = Store(self.frozen, self.state, self.options, precision, step)
        self.learn = DrawStep(train, self.frozen, self.state, self.options, precision, step)

    def call(self):
        images, logits, rank, figures = generator_call(
            self.inner, self.teacher, self.state, self.options
        )
        self.store(images, logits, rank)
        figures |= adversary_steps(self.learn)
        self.state.call += 1
        return figures


@EITHER
@pytest.mark.parametrize("step", ["eager", "graph"])
def test_a_call_never_waits_for_the_host(teacher, step, options):
    loop = Loop(teacher, step, options, precision=torch.bfloat16)
    for _ in range(
        4
    ):  # the adversary comes in, optimisers make their state, graphs are captured, kernels compiled
        loop.call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            loop.call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("step", ["eager", "graph"])
@pytest.mark.parametrize(
    "options",
    [
        tiny_options(),
        later_options(),
        replace(tiny_options(), replay=ReplayOptions(sampling="policy")),
        replace(tiny_options(), replay=ReplayOptions(keep_all=True, balanced_targets=False)),
        replace(tiny_options(), replay=ReplayOptions(replace_all=True), images=1000),
    ],
    ids=["published", "later", "policy", "keep all", "replace all"],
)
def test_a_whole_call_waits_once(teacher, step, options):
    """With its figures, counts and times, at its very end."""
    machine = Machine(resolve_device("cuda"), torch.bfloat16, step)
    recipe = Matching(teacher, plan(options, 10)[0], options, machine)
    for _ in range(4):
        recipe.step()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            recipe.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in said if "synchronizing" in str(each.message)]
    assert len(waits) == 1, waits


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("step", ["eager", "graph"])
@pytest.mark.parametrize("loss", [{"hinton": 1.0}, {"hinton": 1.0, "hints": 20.0}])
def test_a_student_s_step_never_waits_for_the_host(teacher, step, views, loss):
    options = DistillOptions(
        steps=100, batch=32, views_per_image=views, loss=loss
    )  # two views of 64 images are asked beforehand
    student = build_student(StudentOptions("convnet-8"), teacher.contract).to("cuda")
    learner = Learner(student, teacher, options, torch.bfloat16, 0)
    state = StudentState(student, torch.device("cuda"), 0, options, learner)
    learner.train()
    data = load_images(MNIST_SLICE).chosen(torch.arange(64))
    lessons = Lessons(data, learner, 0, torch.device("cuda"))
    lessons.ask_beforehand(True, None)
    counter = torch.zeros((), dtype=torch.int64, device="cuda")
    train = Update(state, lambda number: learner(*lessons.draw(number, state.generator)), step)
    try:
        for number in range(6):
            if (
                number == 4
            ):  # the optimiser has made its state, graphs are captured, kernels compiled
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            state.optimiser.set_share(one_cycle(number, options.steps, options.warmup))
            train(counter.fill_(number))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@EITHER
def test_a_captured_step_computes_what_an_eager_one_does(teacher, options):
    loops = [Loop(teacher, step, options) for step in ("eager", "graph")]
    for _ in range(5):
        ours, theirs = (loop.call() for loop in loops)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-3)
    for one, two in zip(*(loop.state.generator.parameters() for loop in loops), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("fault", ["wait", "error"])
def test_a_step_that_cannot_be_captured_leaves_the_device_as_it_was(fault):
    """Random numbers and later captures go on, on the stream there was."""
    total, one = torch.zeros(2, device="cuda"), torch.ones(2, device="cuda")

    def step(x):
        total.add_(x)
        torch.rand(8, device="cuda")
        if torch.cuda.is_current_stream_capturing() and fault == "error":
            raise RuntimeError("not here")
        if fault == "wait":
            x.sum().item()
        return (total + torch.rand(2, device="cuda"),)

    stream = torch.cuda.current_stream()
    failing = Captured(step, lambda: [total], required=False)
    for _ in range(4):
        failing(one)
    assert total.tolist() == [4, 4] and failing.graph is None
    assert torch.cuda.current_stream() == stream
    assert len(torch.rand(5, device="cuda").unique()) == 5
    working = Captured(lambda x: (total.add_(x),), lambda: [total], required=True)
    for _ in range(4):
        working(one)
    assert working.graph is not None and total.tolist() == [8, 8]


def test_a_replay_draws_as_a_run_would():
    """Step after step, and with the generator in the same state afterwards."""
    found = []
    for step in ("eager", "graph"):
        generator = torch.Generator("cuda").manual_seed(5)
        draw = lambda x, generator=generator: (  # noqa: E731
            x + torch.rand(4, generator=generator, device="cuda"),
        )
        run = Captured(draw, list, True, [generator]) if step == "graph" else draw
        drawn = [run(torch.zeros(4, device="cuda"))[0].clone() for _ in range(5)]
        found.append((torch.stack(drawn), generator.get_state()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_triton_kernels_give_the_step_of_their_definitions(teacher):
    found = []
    for form in ("triton", "reference"):
        with kernel_form(form):
            found.append(Loop(teacher, "eager").call())
    for name in found[0].keys() - {
        "hit"
    }:  # of images after an update of Adam's, of whose first only signs count
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("step", ["eager", "graph"])
def test_a_restored_loop_goes_on_as_it_would_have(teacher, step):
    one, other = (Loop(teacher, step, later_options()) for _ in range(2))
    for _ in range(4):
        one.call()
    saved = io.BytesIO()
    torch.save([one.state.state_dict(), one.inner.state_dict()], saved)
    job, inner = torch.load(io.BytesIO(saved.getvalue()), weights_only=True)
    other.state.load_state_dict(job)
    other.inner.load_state_dict(inner)
    for _ in range(2):
        ours, theirs = one.call(), other.call()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-3)
