"""Processes that claim their jobs from one another: who does what, and what becomes of a lost one's."""

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from claiming import OPEN, claims_of, kept_store, needs_processes, place_of, share_of, wait_for
from conftest import ROOT, environment

from distill import claims, gathering
from distill.claims import Claims
from distill.runtime import Runtime
from distill.sharing import shared_out
from inversion.sources import ahead
from inversion.sources.ahead import Ahead, make_ahead
from inversion.sources.phases import Phase
from synthesis_kernels.errors import EchosetError

HOLDS = """
import os, time
from distill.runtime import Runtime
from distill.sharing import shared_out

with shared_out(Runtime(), [0, 1, 2], "work") as share:
    for job in share:
        print(job, flush=True)
        time.sleep(600)
"""


@pytest.fixture
def store(monkeypatch):
    yield from kept_store(monkeypatch)


@pytest.mark.slow
@pytest.mark.process
def test_what_a_killed_process_had_claimed_is_done_by_another(store):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment() | place_of(0, store),
    )
    assert other.stdout.readline().strip() == "0"
    done = []
    with shared_out(Runtime(quiet=True), [0, 1, 2], "work") as share:
        for job in share:
            done.append(job)
            if job == 2:
                other.kill()
                other.wait()
    assert done == [1, 2, 0]


def test_a_slow_process_holds_nobody_up(store):
    slow = iter(share_of(store, 0, list(range(8))))
    assert next(slow) == 0
    rest = []
    ending = threading.Thread(target=lambda: rest.extend(slow))
    done = []
    for job in share_of(store, 1, list(range(8))):
        done.append(job)
        if len(done) == 7:
            ending.start()
    ending.join()
    assert done == [1, 2, 3, 4, 5, 6, 7] and not rest


def test_what_lies_finished_on_a_disk_is_claimed_by_who_has_it(store):
    shares = [share_of(store, rank, list("abcd")) for rank in range(2)]
    having = {0: "ac", 1: "d"}
    threads = []
    for rank, share in enumerate(shares):
        here = having[rank]
        begin = threading.Thread(target=share.begin, args=(here.__contains__, "b".__contains__))
        begin.start()
        threads.append(begin)
    for begin in threads:
        begin.join()
    first = iter(shares[0])
    assert [next(first), next(first), next(first)] == ["a", "c", "b"]
    assert next(iter(shares[1])) == "d"


def test_a_process_of_another_machine_is_lost_once_it_is_silent(store, monkeypatch):
    held = claims_of(store, 0)
    assert held.take(0)
    own = claims_of(store, 1)
    assert own.take(0) is False
    held.close()
    monkeypatch.setattr(claims, "SILENCE", 0.2)
    wait_for(lambda: own.take(0), seconds=10)


@needs_processes
def test_a_container_of_the_same_name_has_process_numbers_of_its_own(store, monkeypatch):
    number = os.getpid()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    os_stat = os.stat
    with monkeypatch.context() as container:
        space = SimpleNamespace(st_ino=7)
        container.setattr(os, "stat", lambda path: space if "ns/pid" in path else os_stat(path))
        container.setattr(os, "getpid", lambda: dead.pid)
        held = Claims(store, 0, 2)
    OPEN.append(held)
    assert os.getpid() == number and held.take(0)
    own = Claims(store, 1, 2)
    OPEN.append(own)
    assert own.take(0) is False and not own.has_lost(held.name)


def test_files_of_other_disks_come_in_pieces(store, monkeypatch, tmp_path):
    monkeypatch.setattr(gathering, "CHUNK", 1000)
    contents = {"a": b"", "b": bytes(range(256)) * 40}
    shares = [share_of(store, rank, ["ab"]) for rank in range(2)]
    for rank, share in enumerate(shares):
        (tmp_path / str(rank)).mkdir()
        share.claims.join()
        share.claims.begin()
    for name, content in contents.items():
        (tmp_path / "1" / name).write_bytes(content)
    assert list(shares[1]) == ["ab"]

    def fetch(rank):
        folder = tmp_path / str(rank)

        def files(job):
            return [folder / name for name in job]

        def finished(job):
            return all(path.is_file() for path in files(job))

        gathering.gather(shares[rank], folder, finished, files)

    serving = threading.Thread(target=fetch, args=(1,))
    serving.start()
    fetch(0)
    serving.join(timeout=30)
    assert {path.name: path.read_bytes() for path in (tmp_path / "0").iterdir()} == contents


def test_what_a_lost_process_has_is_an_error_with_its_remedy(store, monkeypatch, tmp_path):
    leading, other = (share_of(store, rank, ["a"]) for rank in range(2))
    for share in (leading, other):
        share.claims.join()
        share.claims.begin()
    assert list(other) == ["a"]
    monkeypatch.setattr(Claims, "has_lost", lambda self, holder: True)
    with pytest.raises(EchosetError, match="process 1 on machine-1 has gone, and what it made"):
        gathering.gather(leading, tmp_path, lambda job: False, list)


@pytest.mark.parametrize("carried", [0, 24])
def test_blocks_are_made_ahead_by_others_and_come_in_order(store, monkeypatch, carried):
    monkeypatch.setattr(ahead, "CARRIED", carried)
    made, asked = {0: [], 1: []}, {0: [], 1: []}
    stock = SimpleNamespace(images=torch.zeros(1), logits=torch.zeros(1, 3))

    def phase_of(rank):
        def make(number, stock):
            made[rank].append(number)
            wait_for(lambda: rank or not number or made[1])  # the other comes to it, too
            return torch.full((2, 1, 4, 4), number, dtype=torch.uint8)

        return Phase("a/b", make, lambda stock: 9, drawn=True)

    def answering(rank):
        def answer(images, stock):
            asked[rank].append(int(images[0, 0, 0, 0]))
            return images[:, 0, 0, :3].float()

        return answer

    for rank in range(2):
        claims_of(store, rank).join()
    leader, helper = OPEN[-2:]
    given = (helper, 2, [phase_of(1)], answering(1), stock)
    helping = threading.Thread(target=make_ahead, args=given)
    helping.start()
    get = Ahead(leader, answering(0))
    # The last is asked for by nobody.
    for number in range(8):
        images, logits = get(phase_of(0), number, stock)
        assert images.shape == (2, 1, 4, 4) and logits.shape == (2, 3)
        assert bool((images == number).all()) and bool((logits == number).all())
    wait_for(lambda: 8 in made[1])
    leader.write("over", leader.name)
    helping.join(timeout=30)
    assert made[1] and sorted(made[0] + made[1])[:8] == list(range(8))
    assert asked == (made if carried else {0: list(range(8)), 1: []})
    left = [f"a/b/{number}/{part}" for number in range(9) for part in ("pieces", 0)]
    assert not any(leader.store.check([key]) for key in left)


def test_work_that_fails_leaves_its_job_to_others(store, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ZeroDivisionError), shared_out(Runtime(), [0, 1], "work") as share:
        for job in share:
            1 / job
    other = Claims(share.claims.store, 1, 2)
    OPEN.append(other)
    assert other.take(0) is True


def test_without_torchruns_store_the_share_is_every_nth(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with shared_out(Runtime(), list(range(5)), "work") as share:
        assert Runtime().leads and list(share) == [1, 3]
