"""Several shards made together are the shards that are made one after another."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_options
from stopping import stopped
from torch import nn
from waits import Waits

from distill.files import read_log
from distill.models.frozen import Frozen
from distill.options import StudentOptions
from distill.pacing import Every
from distill.runtime import Machine, Runtime
from inversion import plan, synthesize, synthesize_share
from inversion.options import AdversaryOptions, GeneratorOptions, ReplayOptions
from inversion.parts.abreast import Abreast, Turns
from inversion.parts.inner_step import InnerStep, Request
from inversion.parts.matching import Matching
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.errors import EchosetError

CPU = torch.device("cpu")


def make(teacher, options, out, **more):
    runtime = Runtime(device="cpu", precision="float32", quiet=True, **more)
    return synthesize_share(teacher, options, out, runtime)


def shard_bytes(folder):
    return [path.read_bytes() for path in sorted(folder.glob("shard-*.safetensors"))]


def last_calls(folder):
    """What the log says of each shard's last call, but for its time."""
    calls = {event["shard"]: event for event in read_log(folder / "log.jsonl")}
    for event in calls.values():
        del event["seconds"], event["generator_seconds"]
    return calls


def several(**changes):
    """Three shards in a second or two."""
    options = replace(tiny_options(), images=15, shard_images=5, calls=2, **changes)
    return replace(options, generator=replace(options.generator, inner_steps=2))


def small():
    """Three shards of batches so small that one of the teacher's convolutions takes another form
    for three of them: figures then tell how many were made together.
    """
    return replace(
        tiny_options(),
        images=12,
        shard_images=4,
        batch=3,
        calls=3,
        generator=GeneratorOptions(width=8, inner_steps=2, conditioning=2.0),
        adversary=AdversaryOptions(steps=1, batch=8),
    )


def later():
    """What the CIFAR-10 configurations add to the published method."""
    options = several()
    return replace(
        options,
        generator=replace(options.generator, learning="plain", smooth=1.0),
        adversary=replace(options.adversary, views_per_image=2, hints=20.0),
        views=replace(options.views, cutmix=0.5, mixup=0.5),
    )


def policy():
    """Draws by a policy, which learns from images held out: two a class at least."""
    options = several(replay=ReplayOptions(sampling="policy"))
    return replace(options, images=60, shard_images=20)


@pytest.fixture
def groups(monkeypatch):
    """How many batches each pass of the teacher with moments had."""
    asked = []
    whole = Frozen.with_moments

    def watched(self, images, groups=None, prepared=False):
        asked.append(groups or 1)
        return whole(self, images, groups, prepared)

    monkeypatch.setattr(Frozen, "with_moments", watched)
    return asked


@pytest.fixture
def ending_apart(monkeypatch):
    """Shard 0 is done after two calls, and each other one a call later than the one before it."""
    monkeypatch.setattr(Matching, "done", property(lambda self: self.call >= 2 + self.job.index))


@pytest.mark.parametrize(
    "options",
    [several(), later(), policy()],
    ids=["published", "later", "policy"],
)
def test_shards_are_the_same_bytes_alone_and_abreast(teacher, options, groups, tmp_path):
    make(teacher, options, tmp_path / "alone")
    assert set(groups) == {1}
    groups.clear()
    made = make(teacher, replace(options, abreast=2), tmp_path / "abreast")
    assert set(groups) == {1, 2} and groups[-1] == 1  # the third is alone
    assert shard_bytes(tmp_path / "abreast") == shard_bytes(tmp_path / "alone")
    assert made.manifest["config"]["abreast"] == 2


class Dropping(nn.Module):
    """A student that draws from torch's own random numbers."""

    def __init__(self, classes=10):
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(49, classes)
        )

    def forward(self, images):
        return self.layers(images)


def test_dropout_in_one_shard_is_not_another_s(teacher, tmp_path, monkeypatch):
    student = StudentOptions("test_abreast:Dropping")
    options = several()
    options = replace(options, adversary=replace(options.adversary, student=student))
    before = torch.get_rng_state()
    make(teacher, options, tmp_path / "alone")
    make(teacher, replace(options, abreast=3), tmp_path / "abreast")
    assert shard_bytes(tmp_path / "abreast") == shard_bytes(tmp_path / "alone")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_turn_goes_on_where_the_last_one_ended():
    turns = [Turns(seed, CPU) for seed in (0, 1)]
    drawn = [[], []]
    for _ in range(2):
        for each, into in zip(turns, drawn, strict=True):
            with each.turn():
                into.append(torch.rand(2))
    for seed, numbers in enumerate(drawn):
        torch.manual_seed(seed)
        assert torch.equal(torch.cat(numbers), torch.rand(4))


def recipes(teacher, options, count=2):
    machine = Machine(CPU, torch.float32, "eager")
    return [Matching(teacher, job, options, machine) for job in plan(options, 10)[:count]]


def begun(teacher, options, batch):
    """Two inner loops in the middle of a call, and what their next step is asked for."""
    loops = [recipe.inner for recipe in recipes(teacher, options)]
    requests = []
    for number, loop in enumerate(loops):
        random = torch.Generator().manual_seed(number)
        average = loop.target.mean + 0.1 * number, loop.target.variance * 1.1
        loop.begin(torch.randn(batch, 128, generator=random), average)
        wanted = (torch.arange(batch) + number) % 10
        held = torch.arange(10) + number
        requests.append(Request(wanted, wanted, torch.tensor(7 + number), held, adversarial=True))
    return loops, requests


@pytest.mark.parametrize("batch", [2, 3, 40])
def test_a_step_together_is_each_one_s_step(teacher, batch):
    """To rounding where a convolution's form depends on the number of images."""
    options = several(batch=batch)
    alone, requests = begun(teacher, options, batch)
    apart = [loop.run(*each.tensors, True) for loop, each in zip(alone, requests, strict=True)]
    together, _ = begun(teacher, options, batch)
    results = InnerStep(together)(requests)
    for one, other in zip(apart, results, strict=True):
        for name, value in vars(one).items():
            torch.testing.assert_close(getattr(other, name), value, rtol=1e-4, atol=1e-5)
    for one, other in zip(alone, together, strict=True):
        for total, same in zip(one.summed, other.summed, strict=True):
            assert (same - total).norm() <= 1e-4 * total.norm()
    if batch == 40:
        assert torch.equal(results[1].moments, apart[1].moments)


def test_a_captured_step_takes_every_shard_s_tensors(teacher):
    """On a CPU nothing is captured: what would be is run."""
    options = several()
    eager, requests = begun(teacher, options, options.batch)
    expected = InnerStep(eager)(requests)
    loops, _ = begun(teacher, options, options.batch)
    step = InnerStep(loops)
    step.step = "graph"
    calls = []
    step._captured = lambda *tensors: calls.append(len(tensors)) or step._flat(*tensors)
    found = step(requests)
    assert calls == [8]
    for one, other in zip(expected, found, strict=True):
        names = vars(one).keys() - {"own"}
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
    changed = {tensor.data_ptr() for tensor in step._tensors()}
    assert {loop.noise.data_ptr() for loop in loops} <= changed
    # Before there is an average, a step has another form.
    loops[1].average = None
    step(requests)
    assert calls == [8]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a CUDA graph")
@pytest.mark.parametrize("step", ["eager", "graph"])
def test_on_cuda_a_call_abreast_is_each_one_s_call(teacher, step):
    device = torch.device("cuda")
    machine = Machine(device, torch.float32, step)
    options = several()
    jobs = plan(options, 10)
    alone = [Matching(teacher.to(device), job, options, machine) for job in jobs]
    together = [Matching(teacher.to(device), job, options, machine) for job in jobs]
    runner = Abreast(together, [Turns(job.seed, device) for job in jobs])
    for _ in range(4):
        results = runner.step()
        for recipe, result in zip(alone, results, strict=True):
            figures = recipe.step().figures
            assert result.figures["bn"] == pytest.approx(figures["bn"], rel=0.05)
    teacher.to("cpu")


def test_a_call_abreast_waits_once_a_shard(teacher):
    """After all that the device can do is queued."""
    with kernel_form("reference"):
        options = several()
        made = recipes(teacher, options, 3)
        runner = Abreast(made, [Turns(recipe.job.seed, CPU) for recipe in made])
        for _ in range(3):
            runner.step()
        with Waits() as waits:
            runner.step()
    assert waits.found == {"tolist": 3}


def test_shards_that_end_early_leave_the_others_going(
    teacher, groups, ending_apart, tmp_path, monkeypatch
):
    options = several()
    make(teacher, options, tmp_path / "alone")
    groups.clear()
    make(teacher, replace(options, abreast=3), tmp_path / "abreast")
    assert groups == [3] * 4 + [2] * 2 + [1] * 2
    assert shard_bytes(tmp_path / "abreast") == shard_bytes(tmp_path / "alone")
    ends = {event["shard"]: event["call"] for event in read_log(tmp_path / "abreast/log.jsonl")}
    assert ends == {0: 2, 1: 3, 2: 4}
    assert not list((tmp_path / "abreast").glob(".*.state"))


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture
def renames(monkeypatch):
    """Counts renames, and kills the run before one of them, where it is told which."""
    counter = SimpleNamespace(count=0, last=None)
    rename = os.replace

    def counted(*arguments, **more):
        if counter.count == counter.last:
            raise Killed
        counter.count += 1
        return rename(*arguments, **more)

    monkeypatch.setattr(os, "replace", counted)
    return counter


@pytest.fixture
def calls(monkeypatch):
    """The numbers of the calls that were made together."""
    made = []
    step = Abreast.step

    def watched(self):
        made.append([shard.call for shard in self.shards])
        return step(self)

    monkeypatch.setattr(Abreast, "step", watched)
    return made


# A call's states take six renames: every fifth of all is each of the six in the end.
@pytest.mark.parametrize("often, stride", [(True, 5), (False, 1)], ids=["often", "seldom"])
def test_killed_at_any_point_a_run_goes_on_to_the_same_bytes(
    teacher, ending_apart, tmp_path, monkeypatch, renames, calls, often, stride
):
    """States, shards and notes come about by a rename each. States are saved after each call, or
    only when a shard is done.
    """
    options = replace(small(), abreast=3)
    monkeypatch.setattr(Every, "__call__", lambda self: often)
    make(teacher, options, tmp_path / "whole")
    count = renames.count
    assert count > (20 if often else 10)
    for stop in range(0, count, stride):
        out = tmp_path / str(stop)
        renames.count = 0
        renames.last = stop
        with pytest.raises(Killed):
            make(teacher, options, out)
        renames.last = None
        make(teacher, options, out)
        assert shard_bytes(out) == shard_bytes(tmp_path / "whole"), f"killed before rename {stop}"
        assert last_calls(out) == last_calls(tmp_path / "whole")
        assert not list(out.glob(".*.state"))
    assert all(len(set(each)) == 1 for each in calls)


def test_a_run_stopped_by_hand_goes_on_to_the_same_bytes(teacher, tmp_path):
    options = replace(later(), abreast=3)
    make(teacher, options, tmp_path / "whole")
    with stopped(lambda loop, done: done == 1, r"synthesis stopped.*keeps it"):
        make(teacher, options, tmp_path / "stopped")
    assert len(list((tmp_path / "stopped").glob(".*.state"))) == 3
    make(teacher, options, tmp_path / "stopped")
    assert shard_bytes(tmp_path / "stopped") == shard_bytes(tmp_path / "whole")
    log = read_log(tmp_path / "stopped" / "log.jsonl")
    calls = [event["call"] for event in log if event["shard"] == 2]
    assert calls == list(range(1, calls[-1] + 1))  # nothing was done twice


def test_processes_share_groups_of_shards(teacher, tmp_path):
    options = replace(small(), images=16, abreast=2)
    assert make(teacher, options, tmp_path / "two", rank=1, world=2) is None
    assert {event["shard"] for event in read_log(tmp_path / "two" / "log.jsonl")} == {2, 3}
    assert make(teacher, options, tmp_path / "two", rank=0, world=2) is not None
    make(teacher, options, tmp_path / "one")
    assert shard_bytes(tmp_path / "two") == shard_bytes(tmp_path / "one")


def test_more_abreast_than_there_are_is_lowered_and_said(teacher, tmp_path, capsys):
    options = replace(several(), images=10)
    for number, recipe in ((9, "ssd-kd"), (8, "fast-datafree")):
        made = synthesize(
            teacher,
            replace(options, abreast=number, recipe=recipe),
            tmp_path / recipe,
            Runtime(device="cpu", precision="float32"),
        )
        # A growing pool is one shard.
        shards = {"ssd-kd": 2, "fast-datafree": 1}[recipe]
        assert f"synthesis.abreast {number} is lowered to {shards}" in capsys.readouterr().err
        assert made.manifest["config"]["abreast"] == shards


def test_processes_that_are_left_without_work_are_said(teacher, tmp_path, capsys):
    options = replace(small(), abreast=3)
    runtime = Runtime(device="cpu", precision="float32", rank=1, world=2)
    assert synthesize_share(teacher, options, tmp_path, runtime) is None
    assert "leaves work for 1 of 2 processes" in capsys.readouterr().err


def test_what_cannot_be_made_abreast_is_refused(teacher, tmp_path):
    with pytest.raises(EchosetError, match="recipe adversarial makes one shard at a time"):
        make(teacher, several(recipe="adversarial", abreast=2), tmp_path / "set")
    assert not (tmp_path / "set").exists()
    with pytest.raises(EchosetError, match="abreast must be at least 1, got 0"):
        several(abreast=0)
    make(teacher, replace(small(), abreast=2), tmp_path / "two")
    with pytest.raises(EchosetError, match="other options, seed or teacher"):
        make(teacher, replace(small(), abreast=3), tmp_path / "two")
