"""Processes of torchrun that claim their jobs from one another, and what becomes of a lost one's."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, TINY_FLAGS, environment

from distill import TransferSet, claims, gathering, sharing
from distill.claims import Claims
from distill.runtime import Runtime
from distill.sharing import Share, shared_out
from inversion.sources import ahead
from inversion.sources.ahead import Ahead, make_ahead
from inversion.sources.phases import Phase
from synthesis_kernels.errors import EchosetError

needs_processes = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="there is no /proc here"
)
FLAGS = [
    *TINY_FLAGS,
    "--images=20",
    "--synthesis.shard_images=7",
    "--synthesis.calls=5",
    "--answers=0",
    "--device=cpu",
    "--precision=float32",
]
OPEN = []
"""Claims that are to be closed."""
HOLDS = """
import os, time
from distill.runtime import Runtime
from distill.sharing import shared_out

with shared_out(Runtime(), [0, 1, 2], "work") as share:
    for job in share:
        print(job, flush=True)
        time.sleep(600)
"""


def torchrun(processes, *arguments, command=("-m", "echoset")):
    """Start torchrun; what it says is in its pipe."""
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "inversion" / "public")])
    return subprocess.Popen(
        [*started, f"--nproc-per-node={processes}", *command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


def synthesize(processes, out, **more):
    """A synthesis by so many processes, to its end."""
    started = torchrun(processes, "synthesize", *FLAGS, f"--out={out}", **more)
    told = started.communicate(timeout=300)[0]
    assert started.returncode == 0, told
    return told


def shards_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("shard-*")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The shards of a process alone."""
    out = tmp_path_factory.mktemp("alone") / "set"
    synthesize(1, out)
    return shards_of(out)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("processes", [2, 3])
def test_the_set_does_not_depend_on_the_number_of_processes(alone, tmp_path, processes):
    told = synthesize(processes, tmp_path / "set")
    assert len(alone) == 3 and shards_of(tmp_path / "set") == alone
    assert told.count("Transfer set") == 1


@pytest.mark.slow
@pytest.mark.process
def test_the_console_script_is_started_by_its_path(alone, tmp_path):
    script = Path(sys.executable).with_name("echoset")
    if not script.is_file():
        pytest.skip("the console script is not installed")
    synthesize(2, tmp_path / "set", command=("--no-python", str(script)))
    assert shards_of(tmp_path / "set") == alone


@pytest.mark.slow
@pytest.mark.process
def test_processes_share_a_study(few, tmp_path):
    grid = ['--study.methods=["hinton","labels"]', "--study.seeds=[0,1]", "--study.attacks=0"]
    learning = ["--student=convnet-4", "--distillation.steps=2", "--distillation.batch=4"]
    sets = f'--sets={{"real": "{few}"}}'
    out = tmp_path / "study"
    started = torchrun(2, "study", sets, *grid, *learning, f"--data={few}", f"--out={out}")
    told = started.communicate(timeout=300)[0]
    assert started.returncode == 0, told
    assert json.loads((out / "study.json").read_text())["cells"] == 4
    assert told.count("page: ") == 1


def children_of(process):
    return [
        int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


@pytest.mark.slow
@pytest.mark.process
def test_without_a_shared_disk_process_0_fetches_the_shards(alone, tmp_path):
    words = shlex.join([sys.executable, "-m", "echoset", "synthesize", *FLAGS])
    own = ("--no-python", "sh", "-c", f"exec {words} --out={tmp_path}/$RANK/set")
    for _ in range(2):  # the second finds everything made
        started = torchrun(2, command=own)
        told = started.communicate(timeout=300)[0]
        assert started.returncode == 0, told
        assert shards_of(tmp_path / "0" / "set") == alone
    made = shards_of(tmp_path / "1" / "set")
    assert 0 < len(made) < 3
    TransferSet.load(tmp_path / "0" / "set", check_hashes=True)


def wait_for(what, seconds=120):
    """What there is to wait for, once it is there."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return what()


@needs_processes
@pytest.mark.slow
@pytest.mark.process
def test_a_killed_process_is_started_again_and_costs_no_finished_shard(alone, tmp_path):
    out = tmp_path / "set"
    restarting = ("--max-restarts=2", "-m", "echoset")
    started = torchrun(2, "synthesize", *FLAGS, f"--out={out}", command=restarting)
    notes = wait_for(lambda: list(out.glob(".shard-*.done")))
    made = {note: note.stat().st_mtime_ns for note in notes}
    os.kill(children_of(started.pid)[-1], signal.SIGKILL)
    told = started.communicate(timeout=300)[0]
    assert started.returncode == 0, told
    assert "Signal 9" in told or "SIGKILL" in told or "exitcode: -9" in told
    assert {note: note.stat().st_mtime_ns for note in notes} == made
    assert shards_of(out) == alone


@pytest.fixture
def store(monkeypatch):
    """A store as torchrun keeps it, and this process the second of two."""
    kept = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in place_of(1, kept).items():
        monkeypatch.setenv(name, value)
    for module in (claims, sharing, gathering):
        monkeypatch.setattr(module, "LOOK", 0.01)
    monkeypatch.setattr(claims, "BEAT", 0.05)
    yield kept
    while OPEN:
        OPEN.pop().close()


def place_of(rank, store):
    """What torchrun tells one of two processes."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


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


def claims_of(store, rank, name="work"):
    """Claims as of a process of another machine."""
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: f"machine-{rank}")
        OPEN.append(Claims(dist.PrefixStore(name, store), rank, 2))
    return OPEN[-1]


def share_of(store, rank, jobs):
    return Share(Runtime(rank=rank, world=2, quiet=True), jobs, claims_of(store, rank))


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


def test_a_process_that_was_started_anew_holds_nothing_of_before(store):
    before = claims_of(store, 0)
    before.begin()
    before.take(0)
    own = claims_of(store, 1)
    assert own.take(0) is False
    claims_of(store, 0).begin()
    assert own.take(0)


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


@pytest.mark.slow
@pytest.mark.process
def test_processes_share_a_collection(tmp_path):
    flags = ["--images=700", "--collection.confidence=[0.3,1]", "--answers=0", "--seed=1"]
    for processes in (1, 2):
        out = tmp_path / str(processes)
        started = torchrun(processes, "collect", "noise", "shaders", *flags, f"--out={out}")
        told = started.communicate(timeout=300)[0]
        assert (out / "manifest.json").is_file(), told
    assert shards_of(tmp_path / "1") == shards_of(tmp_path / "2")
    one, two = (TransferSet.load(tmp_path / each).manifest["collection"] for each in "12")
    assert one["drawn"] == two["drawn"] > 1024 and one["taken"] == two["taken"]


def test_work_that_fails_leaves_its_job_to_others(store, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ZeroDivisionError), shared_out(Runtime(), [0, 1], "work") as share:
        for job in share:
            1 / job
    other = Claims(share.claims.store, 1, 2)
    OPEN.append(other)
    assert other.take(0) is True


def test_a_store_that_is_gone_is_an_error_with_its_remedy(store, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(EchosetError, match="torchrun's store is out of reach"):  # noqa: SIM117
        with shared_out(Runtime(quiet=True), [0, 1], "work") as share:
            raise dist.DistNetworkError("nobody listens")
    assert share.left == 2


def test_without_torchruns_store_the_share_is_every_nth(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with shared_out(Runtime(), list(range(5)), "work") as share:
        assert Runtime().leads and list(share) == [1, 3]


def join_meanwhile(own):
    """Have a process join the others in a thread."""
    joining = threading.Thread(target=own.join, daemon=True)
    joining.start()
    return joining


def test_what_the_last_life_left_in_the_store_is_passed_over(store):
    before = claims_of(store, 0)
    before.join()
    before.begin()
    assert before.take(0)
    before.finish(0)
    before.write("over", before.name)
    before.close()  # and torchrun, which keeps its store, starts all anew
    own = claims_of(store, 1)
    joining = join_meanwhile(own)
    joining.join(timeout=0.5)
    assert joining.is_alive()
    leading = claims_of(store, 0)
    leading.join()
    joining.join(timeout=10)
    assert own.leader == leading.name and not own.read("over") and not own.begun()
    assert own.take(0) and not own.has_lost(own.leader)


def test_who_comes_after_the_others_have_ended_finds_that(store, monkeypatch):
    monkeypatch.setattr(claims, "LATE", 0.1)
    leading = claims_of(store, 0)
    leading.join()
    leading.write("over", leading.name)
    leading.close()
    own = claims_of(store, 1)
    own.join()
    assert own.read("over")


def test_the_same_work_is_shared_anew_each_time(store, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(sharing, "START", 0.01)
    for _ in range(2):
        with shared_out(Runtime(quiet=True), [0, 1], "work") as share:
            share.begin(lambda job: False, lambda job: False)
            assert list(share) == [0, 1] and not share.claims.read("over")
            share.claims.write("over", share.claims.name)


def test_nobody_waits_for_a_process_0_that_has_gone(store, monkeypatch):
    shares = [share_of(store, rank, [0]) for rank in range(2)]
    for share in shares:
        share.claims.join()
    shares[0].claims.close()
    monkeypatch.setattr(claims, "SILENCE", 0.2)
    with pytest.raises(EchosetError, match="process 0 has gone before the end"):
        shares[1].leader_first(list)
    with pytest.raises(EchosetError, match="process 0 has gone before the end"):
        gathering.gather(shares[1], Path(), bool, list)
