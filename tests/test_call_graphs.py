"""A whole call of the synthesis in graphs, on a CUDA that is only pretended: begin, steps, end,
storing and draws give what they give eagerly.
"""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_options
from test_step import cuda  # noqa: F401 - a fixture
from test_waits import later_options, with_replay

from distill.runtime import Machine
from inversion import plan
from inversion.parts.matching import Matching
from synthesis_kernels import step as steps

CPU = torch.device("cpu")
CALLS = 6


class Graph:
    """A replay runs the function again, and writes its results where they were."""

    def __init__(self, function):
        self.function = function
        self.outputs = function()
        self.replays = 0

    def replay(self):
        self.replays += 1
        for place, value in zip(self.outputs, self.function(), strict=True):
            place.copy_(value)


@pytest.fixture
def pretended(cuda, monkeypatch):  # noqa: F811
    def record(function, generators=()):
        graph = Graph(function)
        return graph, graph.outputs

    monkeypatch.setattr(steps, "record", record)


def run(teacher, options, step):
    """A recipe after some calls, and what each told."""
    torch.manual_seed(0)
    (job,) = plan(options, 10)
    recipe = Matching(teacher, job, options, Machine(CPU, torch.float32, step))
    told = []
    for _ in range(CALLS):
        told.append(recipe.step().figures)
    return recipe, told


def tensors_of(state):
    """All tensors in nested dictionaries and sequences, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        state = state.values()
    if isinstance(state, list | tuple | type({}.values())):
        return [tensor for part in state for tensor in tensors_of(part)]
    return []


@pytest.mark.parametrize(
    "options",
    [
        tiny_options(),
        later_options(),
        with_replay(sampling="policy"),
        with_replay(keep_all=True, balanced_targets=False, sampling="uniform"),
        with_replay(half_life=2.0),
        replace(with_replay(replace_all=True), images=20),
    ],
    ids=["published", "later", "policy", "keep all", "half-life", "replace all"],
)
def test_a_call_in_graphs_gives_what_an_eager_one_does(teacher, pretended, options):
    ours, told = run(teacher, options, "graph")
    theirs, expected = run(teacher, options, "eager")
    assert told == expected
    pairs = zip(tensors_of(ours.state_dict()), tensors_of(theirs.state_dict()), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    inner, store = ours.inner, ours.store
    graphs = {"begin": inner._captured_begin, "end": inner._captured_end, "store": store._into}
    replays = {name: captured.graph.replays for name, captured in graphs.items()}
    assert replays["begin"] == CALLS - 3 and replays["end"] == CALLS - 1
    if not options.replay.replace_all:
        assert replays["store"] == CALLS - 1
    assert ours.learn._run.graph.replays
