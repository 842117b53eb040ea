import contextlib
import ctypes

import pytest
import torch
from torch import nn

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

    def __init__(self):
        self.total, self.runs = torch.zeros(2), 0
        self.captured = Captured(self.step, lambda: [self.total])

    def step(self, x, y):
        self.runs += 1
        self.total += x
        return self.total * y, x + y


@pytest.fixture
def counted(monkeypatch):
    """Such a step, captured on a CUDA that is only pretended."""
    counted = Counted()
    nothing = lambda *_: contextlib.nullcontext()  # noqa: E731
    stream = type("Stream", (), {"wait_stream": lambda *_: None})
    monkeypatch.setattr(Graph, "captured", counted.captured)
    for name, stand_in in {
        "CUDAGraph": Graph,
        "Stream": stream,
        "current_stream": stream,
        "stream": nothing,
        "graph": nothing,
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return counted


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
    assert resolve_step("auto", CUDA, GRAPH_EARNS) == "graph"


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
