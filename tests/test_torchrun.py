"""Processes that torchrun starts make one set, and one student, together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

pytestmark = [pytest.mark.process, pytest.mark.slow]
PLAIN = ["--preset=none", "--precision=float32", "--device=cpu", "--seed=3"]
SYNTHESIZE = [
    "synthesize",
    *PLAIN,
    "--answers=0",
    "--synthesis.parallel=together",
    "--synthesis.images=20",
    "--synthesis.calls=5",
    "--synthesis.batch=40",
    "--synthesis.held_out=0.2",
    "--synthesis.generator.conditioning=2",
    "--synthesis.generator.width=8",
    "--synthesis.generator.inner_steps=3",
    "--synthesis.generator.learning_rate=0.01",
    "--synthesis.generator.latent_rate=0.1",
    "--synthesis.generator.meta_rate=0.05",
    "--synthesis.objective.bn=2",
    "--synthesis.objective.classes=5",
    "--synthesis.objective.adversary_after=1",
    "--synthesis.adversary.steps=2",
    "--synthesis.adversary.batch=8",
    "--synthesis.adversary.student.model=convnet-4",
]
DISTILL = [
    "distill",
    *PLAIN,
    "--student=convnet-4",
    "--distillation.steps=12",
    "--distillation.batch=8",
]


def torchrun(*arguments, killed=None, processes=2, status=0):
    """A command by so many processes, of which one may be killed: (its rank, after which step)."""
    given = {"OMP_NUM_THREADS": "1", "ECHOSET_TEAM_SECONDS": "180"}
    if killed is not None:
        given |= {"KILLED": str(killed[0]), "KILLED_AT": str(killed[1])}
    starter = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={bool(killed):d}"]
    starter.append("--monitor-interval=0.1")
    program = str(Path(__file__).with_name("torchrun_main.py"))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *starter, program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment() | given,
    )
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def content(folder, pattern):
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def test_a_set_and_a_student_survive_a_killed_process(tmp_path):
    plain = tmp_path / "plain"
    killed = tmp_path / "killed"
    said = torchrun(*SYNTHESIZE, f"--out={plain / 'set'}")
    assert said.stdout.count("Transfer set") == 1  # one of them speaks
    again = torchrun(*SYNTHESIZE, f"--out={killed / 'set'}", killed=(1, 3))
    assert "no longer hears the others" in again.stderr
    one = content(plain / "set", "shard-*.safetensors")
    assert len(one) == 1 and content(killed / "set", "shard-*.safetensors") == one
    (shard,) = json.loads((plain / "set" / "manifest.json").read_text())["shards"]
    assert (shard["processes"], shard["count"]) == (2, 20)
    calls = (plain / "set" / "log.jsonl").read_text().splitlines()
    assert len(calls) == shard["calls"]  # and one writes

    torchrun(*DISTILL, f"--set={plain / 'set'}", f"--out={plain / 'student'}")
    given = (f"--set={plain / 'set'}", f"--out={killed / 'student'}")
    torchrun(*DISTILL, *given, killed=(0, 5))
    student = content(plain / "student", "student.safetensors")
    assert len(student) == 1 and content(killed / "student", "student.safetensors") == student
    assert not list((killed / "student").glob("*.state"))
