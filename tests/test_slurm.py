"""Scripts for Slurm, run without it: what they start, and that a stopped job is queued again."""

import os
import signal
import subprocess
import sys
import time

import pytest
import slurm
from conftest import ROOT

SYNTHESIZE = ["synthesize", "--images", "100", "--out", "runs/my set"]
STAND_INS = {
    "srun": '#!/bin/sh\necho srun $SRUN_CPUS_PER_TASK > "$LOG".cpus\nexec "$@"\n',
    "scontrol": '#!/bin/sh\necho scontrol "$@" >> "$LOG"\necho node-7\n',
    "echoset": '#!/bin/sh\necho echoset "$@" >> "$LOG"\n[ -z "$LONG" ] || exec sleep 60\n',
    "torchrun": '#!/bin/sh\necho torchrun "$@" >> "$LOG"\nexit 3\n',
    "sbatch": '#!/bin/sh\ncat > "$LOG"\n',
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands and ours, which note what they are given in a file."""
    for name, text in STAND_INS.items():
        program = tmp_path / name
        program.write_text(text)
        program.chmod(0o755)
    log = tmp_path / "log"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(log))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node-[7-8]")
    return log


def script_of(capsys, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["slurm.py", *options, "--dry-run", "--", *SYNTHESIZE])
    slurm.main()
    return capsys.readouterr().out


def test_a_job_of_an_array_makes_its_share(cluster, capsys, monkeypatch):
    script = script_of(capsys, monkeypatch, "--tasks=8", "--gpus=1", "--sbatch=--account=me")
    assert "#SBATCH --array=0-7\n" in script and "#SBATCH --account=me\n" in script
    assert "#SBATCH --gpus-per-node=1\n" in script and "#SBATCH --requeue\n" in script
    assert subprocess.run(["bash"], input=script, text=True).returncode == 0
    assert cluster.with_name("log.cpus").read_text() == "srun 6\n"
    expected = "echoset synthesize --images 100 --out runs/my set --rank 2 --world 8\n"
    assert cluster.read_text() == expected


def test_a_job_on_several_nodes_is_torchruns(cluster, capsys, monkeypatch):
    script = script_of(capsys, monkeypatch, "--nodes=2", "--gpus=4", "--cpus=8")
    assert "#SBATCH --nodes=2\n" in script and "export OMP_NUM_THREADS=2\n" in script
    assert "--array" not in script
    assert subprocess.run(["bash"], input=script, text=True).returncode == 3
    told = cluster.read_text()
    assert "torchrun --nnodes 2 --nproc-per-node 4" in told
    assert "--rdzv-endpoint node-7:20041 -m echoset synthesize --images 100" in told


def test_a_job_whose_time_is_over_is_queued_again(cluster, capsys, monkeypatch):
    monkeypatch.setenv("LONG", "yes")
    file = cluster.with_name("script")
    file.write_text(script_of(capsys, monkeypatch))
    job = subprocess.Popen(["bash", str(file)])
    while not cluster.is_file():
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 0
    assert cluster.read_text().splitlines()[-1] == "scontrol requeue 41"


def test_a_script_is_submitted(cluster, capsys, monkeypatch):
    script = script_of(capsys, monkeypatch, "--tasks=3")
    monkeypatch.setattr(sys, "argv", ["slurm.py", "--tasks=3", "--", *SYNTHESIZE])
    with pytest.raises(SystemExit) as ended:
        slurm.main()
    assert ended.value.code == 0 and cluster.read_text() == script


@pytest.mark.parametrize(
    "options, message",
    [
        (["--", "evaluate"], "evaluate runs in one process; shared are synthesize"),
        (["--", "distill"], "distill is shared under torchrun alone; give --nodes"),
        (
            ["--", "synthesize", "--synthesis.parallel", "together"],
            "synthesize --synthesis.parallel together is shared under torchrun alone; give --nodes",
        ),
        (["--", "synthesize", "--synthesis.parallel=together"], "torchrun alone; give --nodes"),
        (["--", "collect"], "collect is shared under torchrun alone; give --nodes"),
        (["--tasks=0", "--", "synthesize"], "--tasks must be at least 1"),
        (["--gpus=2", "--", "synthesize"], "a job of an array uses one GPU"),
    ],
)
def test_what_can_not_be_is_refused(options, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["slurm.py", *options])
    with pytest.raises(SystemExit):
        slurm.main()
    assert message in capsys.readouterr().err


def test_without_slurm_it_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["slurm.py", "--", *SYNTHESIZE])
    monkeypatch.setenv("PATH", str(ROOT))
    with pytest.raises(SystemExit, match="there is no sbatch here"):
        slurm.main()
