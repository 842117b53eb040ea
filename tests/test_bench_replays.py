"""Kernels timed as graphs, on a CUDA that is only pretended."""

import pytest
import torch
from test_step import broken_capture, cuda  # noqa: F401 - a fixture

from inversion.bench import replays
from inversion.bench.bench import Bench
from inversion.bench.replays import MOST_COPIES, Replays, copies_past_cache
from inversion.cli.schema import BenchRun


class Clock:
    """Stands in for the device's: a replay takes three milliseconds."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Clock.now

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return end.at - self.at


class Graph:
    replays = 0

    def replay(self):
        Graph.replays += 1
        Clock.now += 3.0


@pytest.fixture
def device(cuda, monkeypatch):  # noqa: F811
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(Graph, "replays", 0)
    return monkeypatch


def test_copies_hold_more_than_the_cache():
    assert copies_past_cache(cache=100, size=10) == 20
    assert copies_past_cache(cache=100, size=1000) == 1
    assert copies_past_cache(cache=10**9, size=1) == MOST_COPIES


def test_a_replay_s_time_is_that_of_one_copy(device):
    ran = []
    work = Replays([lambda name=name: ran.append(name) for name in "abc"])
    assert ran == list("abc") * 3  # twice to warm up, then into the graph
    assert work.seconds() == pytest.approx(3e-3 / 3)
    assert Graph.replays >= replays.LONG_ENOUGH_MS / 3 and ran == list("abc") * 3
    assert work.problem is None


def test_what_cannot_be_captured_is_launched_one_by_one(device):
    device.setattr(torch.cuda, "graph", broken_capture)
    captured = []

    def work():
        Clock.now += 6.0
        captured.append(torch.cuda.default_generators[0].state)
        if captured[-1] == "capturing":
            raise RuntimeError("operation not permitted")

    found = Replays([work])
    assert found.problem == "operation not permitted"
    assert found.seconds() == pytest.approx(6e-3) and captured[-1] == "free"


def test_kernels_on_cuda_have_tensors_of_their_own(device):
    bench = Bench(BenchRun(device="cpu", quiet=True))
    bench.device = torch.device("cuda")
    device.setattr(torch.cuda, "get_device_properties", lambda _: Properties())
    made = []

    def make():
        made.append(len(made))
        return {"ours": lambda: None, "definition": lambda: None}

    works = bench.on_device(make, size=10)
    assert len(made) == 6 and all(len(work.copies) == 6 for work in works.values())
    bench.device = torch.device("cpu")
    assert not any(isinstance(work, Replays) for work in bench.on_device(make, 10).values())


class Properties:
    L2_cache_size = 30
