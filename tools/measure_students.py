"""Teach several kinds of student from one finished set, judge them, and keep every figure.

    python tools/measure_students.py --name cifar10-students --set SET --beside PICTURES --students wrn-16-2 resnet-18 \\
        --data /path/to/CIFAR-10 -- --distillation.steps 3000

SET is a transfer set that --teacher made; what follows -- goes to `echoset distill`. Work is under runs/students: a student who was
stopped goes on, and one whose command is in configs/results/<name>.json is not taught again. Only the judging reads --data.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from distill.models import load_classifier
from distill.transfer_set import TransferSet
from inversion.cli import _parse
from synthesis_kernels.backend import describe_device, repository_commit, resolve_device

RESULTS = Path(__file__).parent.parent / "configs" / "results"


def run_verb(*command: str) -> dict[str, Any]:
    """The document that a verb prints last."""
    done = subprocess.run([sys.executable, "-m", "inversion.cli", *command, "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"failed: echoset {shlex.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def teach(student: str, seed: int, command: list[str], teacher: str, data: str) -> dict[str, Any]:
    """One student: a row of the file, but for what it learnt from."""
    words, run = shlex.join(["echoset", *command]), _parse(command[0], command[1:])
    out = f"runs/students/{student}-{sha256(words.encode()).hexdigest()[:12]}"
    row = {"name": student, "seed": seed, "command": words, "commit": repository_commit(), "steps": run.distillation.steps}
    learnt = run_verb(*command, "--out", out)
    network = f"{out}/student.safetensors"
    judged = run_verb("evaluate", "--model", network, "--against", teacher, "--data", data)
    row |= {"parameters": load_classifier(network).parameters_count, "student_accuracy": judged["accuracy"]}
    row |= {"agreement": judged["agreement"], "seconds": {"distillation": learnt["seconds"]}}
    return row | {"device": describe_device(resolve_device(run.device)), "torch": torch.__version__}


def measure(
    name: str, whence: list[str], teacher: str, students: list[str], seeds: list[int], data: str, flags: list[str]
) -> list[dict[str, Any]]:
    """Teach and judge whoever is missing; return all rows. `whence` is the set and, if any, the one beside it."""
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {"runs": []}
    counts = [TransferSet.load(place).counts() for place in whence]
    beside = {"images": sum(counts[1]), "per_class": counts[1]} if len(counts) > 1 else None
    sets = [part for option, place in zip(("--set", "--beside"), whence, strict=False) for part in (option, place)]
    for student in students:
        for seed in seeds:
            command = ["distill", *sets, "--teacher", teacher, "--student", student, "--seed", str(seed), *flags]
            if shlex.join(["echoset", *command]) in {run["command"] for run in kept["runs"]}:
                continue
            row = teach(student, seed, command, teacher, data)
            kept["runs"].append(row | {"images": sum(counts[0]), "per_class": counts[0], "beside": beside})
            kept |= {key: row[key] for key in ("device", "torch", "commit")}
            kept["command"] = f"python tools/measure_students.py --name {name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept, indent=1) + "\n")
            print(f"{student}, seed {seed}: {row['student_accuracy']:.2%}", file=sys.stderr, flush=True)
    return kept["runs"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--set", required=True, help="a finished transfer set")
    parser.add_argument("--beside", help="a second set, joined with it")
    parser.add_argument("--teacher", default="cifar10", help="who made them")
    parser.add_argument("--students", nargs="+", required=True, help="networks of the zoo")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data", required=True, help="folder of the test set")
    parser.add_argument("flags", nargs="*", help="further flags for echoset distill, after --")
    given = parser.parse_args()
    whence = [place for place in (given.set, given.beside) if place]
    measure(given.name, whence, given.teacher, given.students, given.seeds, given.data, given.flags)
