"""Give a verb whose work several processes share to Slurm, as one sbatch script.

    python tools/slurm.py --tasks 8 --gpus 1 -- synthesize --images 100000 --out runs/set
    python tools/slurm.py --nodes 2 --gpus 4 --dry-run -- synthesize --images 100000 --out runs/set

By default it is an array of `--tasks` jobs. Each starts when there is room for it, and makes every
n-th shard of the plan. With `--nodes` it is one job on so many nodes at once, where torchrun starts
a process a GPU, and these claim shards from one another. So it has to be where processes hear one
another: `collect`, `distill`, and `synthesize --synthesis.parallel together`.

The script is submitted, or printed by `--dry-run`. Two minutes before its time is over a job saves
what it makes and is queued again, and the same command goes on. So the time need not suffice for
all. Options of sbatch itself, such as an account, go into `--sbatch`.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise

from verbs import new_parser

from inversion.cli.table import VERBS

ARRAY = "--rank $SLURM_ARRAY_TASK_ID --world {tasks}"
"""Behind the command of one job of an array."""
TORCHRUN = (
    "torchrun --nnodes {nodes} --nproc-per-node {processes} --max-restarts 3 "
    '--rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:$port"'
)
HEAD = """\
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))  # jobs that share a node have one each
"""
SCRIPT = """\
#!/bin/bash
{settings}

export OMP_NUM_THREADS={threads}
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # which srun doesn't take over by itself
stopped=
told=
work=
stop() {{
    stopped=yes
    if [ "$work" ] && [ ! "$told" ]; then  # once: a second one would end it unsaved
        told=yes
        kill -TERM "$work"
    fi
}}
trap stop TERM
{head}srun {command} &
work=$!
[ ! "$stopped" ] || stop
wait "$work"
status=$?
if [ "$stopped" ]; then
    wait "$work"  # until what is being made is saved
    scontrol requeue "$SLURM_JOB_ID"
    exit
fi
exit "$status"
"""


def main() -> None:
    """Submit the script, or print it."""
    given = _parse()
    script = write_script(given)
    if given.dry_run:
        print(script, end="")
        return
    if shutil.which("sbatch") is None:
        sys.exit("there is no sbatch here; run this where Slurm is, or see the script: --dry-run")
    sys.exit(subprocess.run(["sbatch"], input=script, text=True, check=False).returncode)


def write_script(given: argparse.Namespace) -> str:
    """The sbatch script for these options."""
    settings = [
        f"--job-name=echoset-{given.command[0]}",
        f"--cpus-per-task={given.cpus}",
        f"--time={given.time}",
        "--requeue",
        "--open-mode=append",
        "--signal=B:TERM@120",
        *given.sbatch,
    ]
    words = shlex.join(given.command)
    if given.nodes:
        processes = max(given.gpus, 1)
        settings += [f"--nodes={given.nodes}", "--ntasks-per-node=1"]
        starter = TORCHRUN.format(nodes=given.nodes, processes=processes)
        command = f"{starter} -m echoset {words}"
        threads = max(given.cpus // processes, 1)
    else:
        settings += [f"--array=0-{given.tasks - 1}"]
        # What comes last wins.
        command = f"echoset {words} {ARRAY.format(tasks=given.tasks)}"
        threads = given.cpus
    if given.gpus:
        settings.append(f"--gpus-per-node={given.gpus}")
    return SCRIPT.format(
        settings="\n".join(f"#SBATCH {setting}" for setting in settings),
        threads=threads,
        head=HEAD if given.nodes else "",
        command=command,
    )


def _parse() -> argparse.Namespace:
    """The options; a mistake ends the process."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--tasks", type=int, default=4, help="jobs of the array (4)")
    add("--nodes", type=int, default=0, help="nodes of one torchrun, in place of an array")
    add("--gpus", type=int, default=0, help="GPUs of a job, on each of its nodes (0)")
    add("--cpus", type=int, default=4, help="CPU cores of a job, on each of its nodes (4)")
    add(
        "--time",
        default="4:00:00",
        help="of a job, before it is queued again (4:00:00)",
    )
    add("--sbatch", action="append", default=[], help="one more option of sbatch, as it is")
    add("--dry-run", action="store_true", help="print the script and submit nothing")
    add("command", nargs="+", help="the verb and its options, behind --")
    given = parser.parse_args()
    shared = [name for name, verb in VERBS.items() if verb.shared]
    if given.command[0] not in shared:
        parser.error(f"{given.command[0]} runs in one process; shared are {', '.join(shared)}")
    if not given.nodes:
        _refuse_array(parser, given.command)
    for name in ("tasks", "cpus"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} must be at least 1")
    for name in ("nodes", "gpus"):
        if getattr(given, name) < 0:
            parser.error(f"--{name} must be at least 0")
    if not given.nodes and given.gpus > 1:
        parser.error("a job of an array uses one GPU; for several give --nodes")
    return given


def _refuse_array(parser: argparse.ArgumentParser, command: list[str]) -> None:
    """Refuse work that processes can't share without hearing one another."""
    verb = command[0]
    words = " ".join(command).replace("=", " ").split()
    pairs = pairwise(words)
    if verb == "synthesize" and ("--synthesis.parallel", "together") in pairs:
        verb = "synthesize --synthesis.parallel together"
    if verb not in ("synthesize", "study", "score"):
        parser.error(f"{verb} is shared under torchrun alone; give --nodes")


if __name__ == "__main__":
    main()
