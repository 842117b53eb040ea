import contextlib
import ctypes

import pytest
import torch
from torch import nn

from synthesis_kernels import backend
from synthesis_kernels.backend import keep_freed_memory
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.step import GRAPH_EARNS, Captured, optimiser_tensors, resolve_step

CPU, CUDA = torch.device("cpu"), torch.device("cuda")  # naming a device needs none


class Graph:
    """Stands in for a CUDA graph: a replay computes from the fixed inputs into the fixed
    outputs.
    """

    captured = None

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1
        for place, found in zip(
            self.captured.outputs, self.captured.function(*self.captured.inputs), strict=True
        ):
            place.copy_(found)


class Counted:
    """A step that changes a tensor in place, and counts how often Python ran it."""

    def __init__(self, required=True):
        self.total, self.runs = torch.zeros(2), 0
        self.captured = Captured(self.step, lambda: [self.total], required)

    def step(self, x, y):
        self.runs += 1
        self.total += x
        return self.total * y, x + y


class Drawing(Counted):
    """One that draws a random number, as dropout does."""

    def step(self, x, y):
        torch.rand(1)
        return super().step(x, y)


CAPTURING = 4
"""The run that is captured, after an eager one and two to warm up."""


class Uncapturable(Drawing):
    """A step that fails when it is captured, halfway."""

    error = RuntimeError("operation not permitted\nwith more lines")

    def step(self, x, y):
        found = super().step(x, y)
        if self.runs == CAPTURING:
            raise self.error
        return found


class Generator:
    """Stands in for the device's generator, which a failed capture leaves waiting."""

    def __init__(self):
        self.state = "free"

    def clone_state(self):
        return self.state

    def graphsafe_set_state(self, state):
        self.state = state


@contextlib.contextmanager
def broken_capture(_):
    """A capture as torch has it: where it fails, so does its end, and the stream stays."""
    torch.cuda.default_generators[0].state = "capturing"
    try:
        yield
    except Exception:
        torch.cuda.set_stream("the capture's")
        raise RuntimeError("failed due to a previous error during capture") from None


@pytest.fixture
def cuda(monkeypatch):
    """A CUDA that is only pretended; the streams that were made current."""
    nothing = lambda *_: contextlib.nullcontext()  # noqa: E731
    stream = type("Stream", (), {"wait_stream": lambda *_: None})
    streams = []
    for name, stand_in in {
        "CUDAGraph": Graph,
        "Stream": stream,
        "current_stream": stream,
        "set_stream": streams.append,
        "stream": nothing,
        "graph": nothing,
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
        "current_device": lambda: 0,
        "default_generators": (Generator(),),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr("synthesis_kernels.step._side_stream", None)
    return streams


@pytest.fixture
def counted(cuda, monkeypatch):
    """Such a step, captured."""
    counted = Counted()
    monkeypatch.setattr(Graph, "captured", counted.captured)
    return counted


@pytest.fixture
def broken(cuda, monkeypatch):
    """Captures fail as torch's do; the streams that were made current."""
    monkeypatch.setattr(torch.cuda, "graph", broken_capture)
    monkeypatch.setattr(backend, "_said", set())
    return cuda


def test_the_first_call_of_a_captured_step_is_eager():
    counted = Counted()
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])
    found = counted.captured(x, y)
    assert counted.runs == 1 and counted.captured.graph is None and not counted.captured.inputs
    assert found[0].tolist() == [3.0, 6.0] and found[1].tolist() == [4.0, 5.0]


def test_the_second_call_captures_and_later_ones_replay(counted):
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])
    counted.captured(x, y)
    counted.captured(x, y)
    graph, places = counted.captured.graph, [place.data_ptr() for place in counted.captured.inputs]
    assert graph.replays == 1
    counted.captured(x, y)
    assert counted.captured.graph is graph and graph.replays == 2
    assert [place.data_ptr() for place in counted.captured.inputs] == places
    assert x.data_ptr() not in places and y.data_ptr() not in places


def test_capturing_changes_neither_the_result_nor_the_random_stream(counted):
    eager, state = Counted(), torch.get_rng_state()
    for number in range(1, 5):
        inputs = torch.tensor([float(number), -2.0]), torch.full((2,), 0.5 * number)
        for ours, theirs in zip(counted.captured(*inputs), eager.step(*inputs), strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(counted.total, eager.total)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fails", [False, True])
def test_a_generator_of_its_own_draws_what_it_would_have_drawn(cuda, monkeypatch, fails):
    """It is made known to the graph before the capture, and capturing takes nothing from it."""
    ours, theirs = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    known = []
    left = []
    ours_as_cuda_has_it = Registered(ours, left)
    register = lambda _, each: known.append(each)  # noqa: E731
    monkeypatch.setattr(Graph, "register_generator_state", register, raising=False)
    runs = []

    def step(x):
        assert len(runs) < 3 or known == [ours_as_cuda_has_it]
        runs.append(x)
        drawn = torch.rand(2, generator=ours)
        if fails and len(runs) == CAPTURING:
            raise RuntimeError("not here")
        return (x + drawn,)

    if fails:
        monkeypatch.setattr(torch.cuda, "graph", broken_capture)
    captured = Captured(step, list, not fails, [ours_as_cuda_has_it])
    monkeypatch.setattr(Graph, "captured", captured)
    for _ in range(5):
        expected = torch.rand(2, generator=theirs)
        assert torch.equal(captured(torch.zeros(2))[0], expected)
    assert bool(left) == fails


class Registered:
    """A generator that may leave a failed capture, as one of a CUDA device may."""

    def __init__(self, generator, left):
        self.get_state = generator.get_state
        self.set_state = generator.set_state
        self.clone_state = generator.get_state
        self.graphsafe_set_state = left.append


def compare_with_eager(uncapturable, calls=6):
    """Call it beside a step that was never captured: results, state and random numbers agree."""
    eager, began = Drawing(), torch.get_rng_state()
    for number in range(calls):
        inputs = torch.tensor([float(number), -2.0]), torch.full((2,), 0.5 * number)
        before = torch.get_rng_state()
        found = uncapturable.captured(*inputs)
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        for ours, theirs in zip(found, eager.step(*inputs), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(after, torch.get_rng_state())
    assert torch.equal(uncapturable.total, eager.total)
    assert not torch.equal(began, torch.get_rng_state())


def test_a_step_that_cannot_be_captured_goes_on_eagerly(broken, capsys):
    """What trying changed is put back, and a warning names the first error, once."""
    step = Uncapturable(required=False)
    compare_with_eager(step)
    assert step.runs == 6 + 3  # two to warm up, and the one that failed
    assert step.captured.graph is None and not step.captured.inputs
    assert isinstance(broken[-1], torch.cuda.Stream)  # the one that was current before
    assert torch.cuda.default_generators[0].state == "free"
    compare_with_eager(Uncapturable(required=False))
    (line,) = capsys.readouterr().err.splitlines()
    assert "can't be captured as a CUDA graph (operation not permitted); it runs eagerly" in line


def test_a_graph_asked_for_by_name_fails_with_the_first_error(broken):
    step = Uncapturable()
    x, y = torch.ones(2), torch.ones(2)
    step.captured(x, y)
    message = r"can't be captured as a CUDA graph \(operation not permitted\); use --step eager"
    with pytest.raises(EchosetError, match=message) as raised:
        step.captured(x, y)
    assert raised.value.__cause__ is Uncapturable.error
    assert step.total.tolist() == [1, 1]
    assert isinstance(broken[-1], torch.cuda.Stream)


@pytest.mark.parametrize("required", [True, False])
def test_memory_that_a_capture_lacks(broken, monkeypatch, required):
    """Is told as such where a graph was asked for; eager steps need less."""
    monkeypatch.setattr(Uncapturable, "error", torch.OutOfMemoryError("out of memory"))
    step = Uncapturable(required)
    if not required:
        compare_with_eager(step)
        return
    step.captured(torch.ones(2), torch.ones(2))
    with pytest.raises(torch.OutOfMemoryError):
        step.captured(torch.ones(2), torch.ones(2))


def test_an_error_that_only_the_end_of_a_capture_shows_is_named(cuda, monkeypatch):
    @contextlib.contextmanager
    def capture(_):
        yield
        raise RuntimeError("unjoined work")

    monkeypatch.setattr(torch.cuda, "graph", capture)
    step = Counted()
    step.captured(torch.ones(2), torch.ones(2))
    with pytest.raises(EchosetError, match="unjoined work"):
        step.captured(torch.ones(2), torch.ones(2))


def test_what_a_captured_step_returns_stays_in_its_place(counted):
    x, y = torch.ones(2), torch.ones(2)
    counted.captured(x, y)
    one, two = counted.captured(x, y), counted.captured(2 * x, y)
    assert [value.data_ptr() for value in one] == [value.data_ptr() for value in two]


@pytest.mark.parametrize(
    "make, states",
    [
        (lambda groups: torch.optim.SGD(groups, 0.1, momentum=0.9), ("momentum_buffer",)),
        (
            lambda groups: torch.optim.Adam(groups, 0.1, fused=True),
            ("step", "exp_avg", "exp_avg_sq"),
        ),
    ],
)
def test_optimiser_tensors_are_the_parameters_and_their_state(make, states):
    layer, noise = nn.Linear(3, 2), nn.Parameter(torch.zeros(4))
    optimiser = make([{"params": list(layer.parameters())}, {"params": [noise], "lr": 1.0}])
    parameters = [*layer.parameters(), noise]
    assert identities(optimiser_tensors(optimiser)) == identities(
        parameters
    )  # no state before the first step
    (layer(torch.ones(1, 3)).sum() + noise.sum()).backward()
    optimiser.step()
    state = [optimiser.state[p][name] for p in parameters for name in states]
    found = optimiser_tensors(optimiser)
    assert identities(found) == identities([*parameters, *state]) and len(found) == len(
        parameters
    ) + len(state)


def identities(tensors):
    return {id(tensor) for tensor in tensors}


@pytest.mark.parametrize("count", [1, GRAPH_EARNS, 10**6])
def test_a_cpu_runs_eagerly_unless_asked(count):
    assert resolve_step("auto", CPU, count) == "eager"


def test_a_graph_is_captured_where_the_run_is_long_enough():
    assert resolve_step("auto", CUDA, GRAPH_EARNS - 1) == "eager"
    assert resolve_step("auto", CUDA, GRAPH_EARNS) == "auto"


@pytest.mark.parametrize("way", ["eager", "graph"])
def test_a_way_asked_for_by_name_is_taken(way):
    assert resolve_step(way, CUDA, 1) == way


def test_a_graph_on_a_cpu_is_refused():
    with pytest.raises(EchosetError, match="needs a CUDA device"):
        resolve_step("graph", CPU, 1000)


def test_keeping_freed_memory_never_fails(monkeypatch):
    keep_freed_memory()

    def no_library(_):
        raise OSError("no such library")

    for library in (no_library, lambda _: object()):  # none at all, and one without the switch
        monkeypatch.setattr(ctypes, "CDLL", library)
        keep_freed_memory()
