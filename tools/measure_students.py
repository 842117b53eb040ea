"""Teach several kinds of student from one finished set, judge them, and keep every figure.

    python tools/measure_students.py --name cifar10-students --set SET --beside PICTURES \\
        --students wrn-16-2 cifar-resnet18 --data /path/to/CIFAR-10 -- --distillation.steps 3000

SET is a transfer set that --teacher made; what follows -- goes to `echoset distill`. Work is under
runs/students: a student who was stopped goes on, and one whom configs/results/<name>.json has, of
the same seed, options and sets, is not taught again. Only the judging reads --data.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from results import RESULTS, Figures, add_run, digest, hide, read_runs, set_hashes
from verbs import new_parser, plain_endings, read_options, run_verb

from distill.data.images import load_images
from distill.files import write_json
from distill.sets.transfer_set import TransferSet
from distill.students import build_student
from inversion.cli.schema import DistillRun
from synthesis_kernels.backend import describe_device, repository_commit, resolve_device


@dataclass(frozen=True)
class Lesson:
    """One student, as it is asked for."""

    who: Figures
    """What tells it from others: name, seed, options and sets."""
    command: list[str]
    """How it is taught."""
    run: DistillRun
    """What the command asks for."""
    parameters: int
    """The network's."""

    @property
    def folder(self) -> str:
        """Where it is taught."""
        key = sha256(json.dumps(self.who).encode()).hexdigest()[:12]
        return f"runs/students/{self.who['name']}-{key}"


def measure(
    name: str,
    whence: list[str],
    teacher: str,
    students: list[str],
    seeds: list[int],
    data: str,
    flags: list[str],
) -> list[Figures]:
    """Teach and judge whoever is missing; return all rows. `whence` is the set and, if any, the one
    beside it.
    """
    path = RESULTS / f"{name}.json"
    sets = [TransferSet.load(place) for place in whence]
    # Wrong places and names are told before any work.
    load_images(data)
    lessons = []
    for student in students:
        for seed in seeds:
            command = ["distill", *name_sets(whence), "--teacher", teacher]
            command += ["--student", student, "--seed", str(seed), *flags]
            lessons.append(plan(student, seed, command, sets))
    for lesson in lessons:
        rows = read_runs(path)["runs"]
        if not any(lesson.who.items() <= row.items() for row in rows):
            learn(path, lesson, whence, teacher, data, taught_by(sets))
    return read_runs(path)["runs"]


def name_sets(whence: list[str]) -> list[str]:
    """The flags that name the sets."""
    flags = []
    for option, place in zip(("--set", "--beside"), whence, strict=False):
        flags += [option, place]
    return flags


def taught_by(sets: list[TransferSet]) -> Figures:
    """How many images of each class there are, and of the set beside."""
    counts = [{"images": sum(part.counts()), "per_class": part.counts()} for part in sets]
    return counts[0] | {"beside": counts[1] if len(counts) > 1 else None}


def plan(student: str, seed: int, command: list[str], sets: list[TransferSet]) -> Lesson:
    """One student of these sets."""
    run = read_options(DistillRun, command[0], command[1:])
    network = build_student(run.student, sets[0].manifest["input"])
    who = {
        "name": student,
        "seed": seed,
        "configuration": digest(run, "set", "beside"),
        "set_hashes": set_hashes(*sets),
    }
    return Lesson(who, command, run, network.parameters_count)


def learn(
    path: Path, lesson: Lesson, whence: list[str], teacher: str, data: str, images: Figures
) -> None:
    """Teach and judge one student, and add its figures to the file."""
    run = lesson.run
    commit = repository_commit()
    figures = teach(lesson.command, lesson.folder, teacher, data)
    machine = {
        "device": describe_device(resolve_device(run.device)),
        "torch": torch.__version__,
        "commit": commit,
    }
    places: dict[str | None, str] = dict(zip(whence, ("SET", "BESIDE"), strict=False))
    row = {
        **lesson.who,
        "command": hide(shlex.join(["echoset", *lesson.command]), places),
        "steps": run.distillation.steps,
        "parameters": lesson.parameters,
        "taught_before": bool(run.student.weights),
        **machine,
        **figures,
        **images,
    }
    head = machine | {"command": f"python tools/measure_students.py --name {path.stem}"}
    add_run(path, row, head)
    print(
        f"{row['name']}, seed {row['seed']}: {figures['student_accuracy']:.2%}",
        file=sys.stderr,
        flush=True,
    )


def teach(command: list[str], out: str, teacher: str, data: str) -> Figures:
    """The figures of one student; one who was taught and not judged is only judged."""
    taught = Path(out) / "taught.json"
    if not taught.is_file():
        write_json(taught, run_verb(*command, "--out", out))
    learnt = json.loads(taught.read_text())
    judged = run_verb(
        "evaluate", "--model", f"{out}/student.safetensors", "--against", teacher, "--data", data
    )
    return {
        "student_accuracy": judged["accuracy"],
        "agreement": judged["agreement"],
        "seconds": {"distillation": learnt["seconds"]},
    }


if __name__ == "__main__":
    parser = new_parser(__doc__)
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
