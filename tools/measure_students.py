"""Teach several kinds of student from one finished set, judge them, and keep every figure.

    python tools/measure_students.py --name cifar10-students --set SET --beside PICTURES --students
    wrn-16-2 cifar-resnet18 \\
        --data /path/to/CIFAR-10 -- --distillation.steps 3000

SET is a transfer set that --teacher made; what follows -- goes to `echoset distill`. Work is under
runs/students: a student who was stopped goes on, and one whom configs/results/<name>.json has, of
the same seed, options and sets, is not taught again. Only the judging reads --data.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from results import (
    RESULTS,
    add_run,
    digest,
    hide,
    plain_endings,
    read_runs,
    run_verb,
    set_hashes,
    write_json,
)

from distill.data.images import load_images
from distill.sets.transfer_set import TransferSet
from distill.students import build_student
from inversion.cli.main import parse
from synthesis_kernels.backend import describe_device, repository_commit, resolve_device


def teach(command: list[str], out: str, teacher: str, data: str) -> dict[str, Any]:
    """The figures of one student; one who was taught and not judged is only judged."""
    taught = Path(out) / "taught.json"
    if not taught.is_file():
        write_json(taught, run_verb(*command, "--out", out))
    learnt = json.loads(taught.read_text())
    judged = run_verb(
        "evaluate", "--model", f"{out}/student.safetensors", "--against", teacher, "--data", data
    )
    figures = {"student_accuracy": judged["accuracy"], "agreement": judged["agreement"]}
    return figures | {"seconds": {"distillation": learnt["seconds"]}}


def measure(
    name: str,
    whence: list[str],
    teacher: str,
    students: list[str],
    seeds: list[int],
    data: str,
    flags: list[str],
) -> list[dict[str, Any]]:
    """Teach and judge whoever is missing; return all rows. `whence` is the set and, if any, the one
    beside it.
    """
    path, parts, todo = RESULTS / f"{name}.json", [TransferSet.load(place) for place in whence], []
    counts, hashes = [part.counts() for part in parts], set_hashes(*parts)
    beside = {"images": sum(counts[1]), "per_class": counts[1]} if len(counts) > 1 else None
    taught_by = {"images": sum(counts[0]), "per_class": counts[0], "beside": beside}
    sets = [
        part
        for option, place in zip(("--set", "--beside"), whence, strict=False)
        for part in (option, place)
    ]
    load_images(data)  # a wrong place, too
    for student in students:
        for seed in seeds:
            command = [
                "distill",
                *sets,
                "--teacher",
                teacher,
                "--student",
                student,
                "--seed",
                str(seed),
                *flags,
            ]
            run = parse(command[0], command[1:])
            network = build_student(
                run.student, parts[0].manifest["input"]
            )  # a wrong name is told before any work
            who = {
                "name": student,
                "seed": seed,
                "configuration": digest(run, "set", "beside"),
                "set_hashes": hashes,
            }
            todo.append((who, command, run, network.parameters_count))
    for who, command, run, parameters in todo:
        if any(who.items() <= row.items() for row in read_runs(path)["runs"]):
            continue
        commit, key = repository_commit(), sha256(json.dumps(who).encode()).hexdigest()[:12]
        figures = teach(command, f"runs/students/{who['name']}-{key}", teacher, data)
        where = {
            "device": describe_device(resolve_device(run.device)),
            "torch": torch.__version__,
            "commit": commit,
        }
        public = hide(
            shlex.join(["echoset", *command]), dict(zip(whence, ("SET", "BESIDE"), strict=False))
        )
        how = {"command": public, "steps": run.distillation.steps, "parameters": parameters}
        how["taught_before"] = bool(run.student.weights)
        head = where | {"command": f"python tools/measure_students.py --name {name}"}
        add_run(path, who | how | where | figures | taught_by, head)
        print(
            f"{who['name']}, seed {who['seed']}: {figures['student_accuracy']:.2%}",
            file=sys.stderr,
            flush=True,
        )
    return read_runs(path)["runs"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    with plain_endings():
        measure(
            given.name, whence, given.teacher, given.students, given.seeds, given.data, given.flags
        )
