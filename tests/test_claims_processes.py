"""Processes of torchrun share out sets, studies and collections, whatever becomes of one of them."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from claiming import needs_processes, wait_for
from conftest import ROOT, TINY_FLAGS, environment

from distill import TransferSet

FLAGS = [
    *TINY_FLAGS,
    "--images=20",
    "--synthesis.shard_images=7",
    "--synthesis.calls=20",
    "--answers=0",
    "--device=cpu",
    "--precision=float32",
]


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
