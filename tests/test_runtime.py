"""Where a process stands among others, and what it refuses."""

import pytest
import torch

from distill.runtime import Runtime
from inversion import SynthesisOptions, plan, shards
from inversion.cli.main import main
from synthesis_kernels.errors import EchosetError


@pytest.mark.parametrize(
    "rank, world, place",
    [
        ("1", "3", (1, 3)),
        ("0", "1", (0, 1)),
        (None, None, (0, 1)),
        ("1", None, (0, 1)),
        ("", "", (0, 1)),
        ("one", "2", (0, 1)),
        ("2", "2", (0, 1)),
    ],
)
def test_the_place_is_torchruns_where_it_gives_one(monkeypatch, rank, world, place):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    runtime = Runtime()
    assert (runtime.rank, runtime.world) == place


def test_what_is_given_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    runtime = Runtime(rank=0, world=1)
    assert (runtime.rank, runtime.world) == (0, 1)


@pytest.fixture
def torchrun(monkeypatch):
    """Set what torchrun sets in the process of this number, on a machine with two devices; the
    devices that were made current.
    """
    taken = []
    for name, stand_in in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "set_device": taken.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def start(rank, world, local):
        for name, value in (("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", local)):
            monkeypatch.setenv(name, str(value))
        return taken

    return start


def test_each_process_of_torchrun_takes_a_device_of_its_own(torchrun):
    """Of the second machine of two, the second process is the fourth of all."""
    taken = torchrun(rank=3, world=4, local=1)
    device = Runtime().resolve_device()
    assert device == torch.device("cuda", 1) and taken == [device]


def test_a_process_alone_takes_whatever_is_current(torchrun):
    taken = torchrun(rank=0, world=1, local=0)
    assert Runtime().resolve_device() == torch.device("cuda") and not taken


def test_more_processes_than_devices_are_refused(torchrun):
    torchrun(rank=2, world=3, local=2)
    with pytest.raises(EchosetError, match="LOCAL_RANK is 2, and this process sees 2 CUDA devices"):
        Runtime().resolve_device()


def test_processes_of_torchrun_share_no_state_file(torchrun, tmp_path):
    jobs = plan(SynthesisOptions(images=70, shard_images=10), classes=10)
    shares = []
    for rank in range(2):
        torchrun(rank, world=2, local=rank)
        shares.append({shards.state_file(tmp_path, job) for job in Runtime().share(jobs)})
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == {shards.state_file(tmp_path, job) for job in jobs}


def test_processes_share_all_jobs_and_none_twice():
    jobs = list(range(7))
    shares = [Runtime(rank=rank, world=3).share(jobs) for rank in range(3)]
    assert sorted(job for share in shares for job in share) == jobs
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rank": 2, "world": 2}, "rank must lie in"),
        ({"rank": -1}, "rank must lie in"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"precision": "half"}, "precision must be one of"),
    ],
)
def test_what_can_not_be_is_refused(change, message):
    with pytest.raises(EchosetError, match=message):
        Runtime(**change)


def test_a_student_is_shared_under_torchrun_alone(tmp_path, capsys):
    flags = ["--rank", "0", "--world", "2"]
    assert main(["distill", "--set=tests", "--out", str(tmp_path / "student"), *flags]) == 1
    assert "start all of them by torchrun --nproc-per-node 2" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_collecting_is_shared_under_torchrun_alone(tmp_path, capsys):
    flags = ["--rank", "0", "--world", "2"]
    assert main(["collect", "shaders", "--out", str(tmp_path / "set"), *flags]) == 1
    assert "can share collect under torchrun alone" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
