"""What the processes of a team tell one another, and layers that look across their batch."""

import copy

import pytest
import torch
from teams import SOLO, assert_same, in_team
from torch import nn

from distill.loop import Interrupted, Loop
from distill.models import ModelSpec, build_classifier, load_classifier, save_classifier
from distill.runtime import Runtime
from distill.team import Team, team_of
from distill.team_layers import TeamNorm, join, over_all, pooled
from synthesis_kernels.errors import EchosetError

pytestmark = [pytest.mark.process, pytest.mark.slow]


def numbers(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def test_gradients_of_sums_and_gathered_parts_are_those_of_the_whole():
    whole = numbers(6, 3)
    weights = numbers(6, 3, seed=1)

    def ask(team, batch):
        part = team.part(batch).clone().requires_grad_(True)
        together = team.gather(part)
        total = team.sum(part.sum(0))
        # What all compute alike counts once.
        loss = (together.exp() * weights).sum() * together[0, 0] / team.world
        loss = loss + total.square().sum() / team.world + (part**3).sum()
        loss.backward()
        assert torch.equal(together, batch)
        return part.grad

    found = in_team(lambda team: ask(team, whole), world=3)
    assert_same([torch.cat(found)], [ask(SOLO, whole)], 1e-12)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=None)])
        self.bare = nn.BatchNorm1d(4, affine=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        for norm in self.norms:
            x = norm(self.stem(x)).relu() if norm is self.norms[0] else norm(x)
        return self.bare(self.dropout(x).mean((2, 3)))


def train(team, network, images):
    torch.manual_seed(5)
    with over_all(network, team):
        for step in range(3):
            y = network(team.part(images) * (step + 1))
            (y.square() * y.exp()).mean().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    team.add_up(gradients, 1 / team.world)
    return [*gradients, *[one.double() for one in network.buffers()]], type(network.norms[0])


def test_layers_of_a_team_are_those_of_the_whole_batch():
    # A mean far from 0, of which squares would leave nothing.
    images = numbers(8, 2, 6, 6).float().double() + 1000
    network = Layers().double()
    (alone, _) = train(SOLO, copy.deepcopy(network), images)
    for found, kind in in_team(lambda team: train(team, copy.deepcopy(network), images)):
        assert_same(found, alone)
        assert kind is nn.BatchNorm2d  # as before


def test_moments_of_parts_are_pooled_without_cancelling():
    rows = numbers(6, 5) + 1e4

    def moments(batch):
        variance, mean = torch.var_mean(batch, 0, correction=0)
        return torch.stack([mean, variance])

    (found, _) = in_team(lambda team: pooled(moments(team.part(rows)), team))
    assert_same(found, moments(rows), 1e-10)


def test_what_one_finds_is_told_to_all_and_so_is_its_error():
    def tell(team):
        with pytest.raises(EchosetError, match="no file"):
            team.told(lambda: (_ for _ in ()).throw(EchosetError("no file")))
        flags = team.any(team.rank == 1, False)
        return team.told(lambda: {"rank": team.rank}), flags

    assert in_team(tell) == [({"rank": 0}, [True, False])] * 2


def test_a_process_that_ends_leaves_the_others_with_a_message():
    def leave(team):
        if team.rank:
            return ""
        with pytest.raises(
            EchosetError,
            match=r"no longer hears the others \((Conn|Read).*goes on from what was saved",
        ) as e:
            team.gather(torch.ones(2))
        return str(e.value)

    in_team(leave)


def test_a_process_that_hangs_is_not_waited_for_for_ever():
    import time

    def hang(team):
        if team.rank:
            time.sleep(4)
            return
        with pytest.raises(EchosetError, match=r"took longer than 1 s \(ECHOSET_TEAM_SECONDS\)"):
            team.gather(torch.ones(2))

    in_team(hang, seconds="1")


def test_a_team_stops_and_saves_at_one_step(tmp_path):
    def work(team):
        saved = []
        told = tmp_path / str(team.rank)

        def save(seconds):
            saved.append(step)
            return told

        with Loop("working", 9, quiet=True, save=save, step="", team=team) as loop:
            loop._due.wait = 999
            with pytest.raises(Interrupted, match=f"stopped; {told} keeps it"):
                for step in range(1, 10):
                    loop._flag.raised = (team.rank, step) == (1, 3)
                    loop.advance(step)
        return saved

    assert in_team(work) == [[3], [3]]


def test_processes_that_differ_are_stopped():
    def differ(team):
        team.require_alike(lambda: [1.0, float("nan")], "call 1")
        with pytest.raises(EchosetError, match=r"no longer agree at call 2.*OMP_NUM_THREADS"):
            team.require_alike(lambda: [1.0 + team.rank], "call 2")

    in_team(differ)


@pytest.mark.parametrize(("count", "nearest"), [(200, 201), (199, 198), (2, 3)])
def test_a_batch_without_equal_parts_is_refused_with_the_nearest_that_works(count, nearest):
    with pytest.raises(EchosetError, match=rf"synthesis.batch {count} .* set it to {nearest}$"):
        Team(0, 3).check(count, "synthesis.batch")


def test_a_team_that_torchrun_has_not_started_is_refused(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    runtime = Runtime(rank=0, world=2, device="cpu")
    refused = pytest.raises(EchosetError, match="torchrun --nproc-per-node 2")
    with refused, team_of(runtime):
        pass


def test_layers_that_cannot_be_shared_are_refused_by_name():
    class OwnNorm(nn.BatchNorm2d):
        pass

    network = nn.Sequential(nn.Conv2d(1, 2, 1), OwnNorm(2))
    refused = pytest.raises(EchosetError, match=r"layer 1 is a OwnNorm.*use one process")
    with refused, over_all(network, Team(0, 2)):
        pass
    assert not isinstance(network[1], TeamNorm)


def test_a_network_is_saved_while_a_team_trains_it(tmp_path):
    spec = ModelSpec("convnet-4", channels=1, size=8, classes=3)
    student = build_classifier(spec)
    path = tmp_path / "student.safetensors"
    with over_all(student, Team(0, 2)):
        save_classifier(student, path)
    saved = load_classifier(path)
    assert all(map(torch.equal, saved.parameters(), student.parameters()))


class StochasticDepth(nn.Module):
    """As torchvision has it."""

    def __init__(self, p):
        super().__init__()
        self.p = p


class DropPath(nn.Module):
    """As timm and transformers have it."""

    def __init__(self, drop_prob=None):
        super().__init__()
        self.drop_prob = drop_prob


def test_layers_that_draw_for_themselves_are_refused():
    drawing = [StochasticDepth(0.2), DropPath(0.1), nn.MultiheadAttention(4, 2, dropout=0.1)]
    for layer in drawing:
        network = nn.Sequential(nn.BatchNorm2d(2), layer)
        with pytest.raises(EchosetError, match=f"layer 1 is a {type(layer).__name__}, .* to 0"):
            join(network, Team(0, 2))
        assert type(network[0]) is nn.BatchNorm2d  # as it came
    still = [StochasticDepth(0.0), DropPath(), nn.MultiheadAttention(4, 2)]
    assert not join(nn.Sequential(*still), Team(0, 2))
