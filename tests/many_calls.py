"""Many calls in one process, and what they leave in it: memory, files, threads, processes, hooks.

`python tests/many_calls.py 100` makes each call so many times, and with names behind only those.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from distill import DistillOptions, ModelSpec, build_classifier, distill, evaluate
from distill.data.images import as_images
from distill.options import StudentOptions
from distill.runtime import Runtime
from inversion import synthesize
from inversion.options import (
    AdversaryOptions,
    CollectOptions,
    GeneratorOptions,
    ObjectiveOptions,
    SynthesisOptions,
)
from inversion.sources.collect import collect

NAMES = ("collect", "distill", "evaluate", "synthesize")
QUIET = Runtime(device="cpu", quiet=True)
SYNTHESIS = SynthesisOptions(
    images=8,
    calls=2,
    batch=16,
    held_out=0.25,
    generator=GeneratorOptions(width=4, inner_steps=1),
    objective=ObjectiveOptions(adversary_after=0),
    adversary=AdversaryOptions(steps=1, batch=4, student=StudentOptions("convnet-4")),
)
LESSON = DistillOptions(steps=2, batch=4, views_per_image=1)
COLLECTION = CollectOptions(images=8, balanced=False, short=(), expose=0.0)


@dataclass(frozen=True)
class Left:
    """What a process has."""

    memory: float
    """MB."""
    files: int
    threads: int
    processes: int
    hooks: int
    """Of the teacher."""


def toy_teacher():
    """A small network with statistics, that decides for no class alone."""
    teacher = build_classifier(ModelSpec("convnet-4", channels=1, size=8, classes=2), seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(20):
            teacher.train()(torch.rand(64, 1, 8, 8, generator=generator))
    return teacher.eval()


def calls_of(teacher, folder):
    """What can be called, by name: each call makes its folder anew."""
    made = collect(teacher, ("gaussian",), COLLECTION, folder / "given", QUIET)
    student = build_classifier(teacher.spec, seed=1)
    images = as_images(made, "set")
    lesson = {"folder": folder / "run", "runtime": QUIET}
    return {
        "collect": lambda: collect(teacher, ("gaussian",), COLLECTION, folder / "run", QUIET),
        "distill": lambda: distill(student, made, teacher, LESSON, **lesson),
        "evaluate": lambda: evaluate(student, images, teacher, runtime=QUIET),
        "synthesize": lambda: synthesize(teacher, SYNTHESIS, folder / "run", QUIET),
    }


def look(teacher) -> Left:
    """What the process has now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    hooks = 0
    for module in teacher.modules():
        hooks += len(module._forward_hooks) + len(module._forward_pre_hooks)
        hooks += len(module._backward_hooks)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return Left(
        memory=pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        files=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")),
        processes=len(children),
        hooks=hooks,
    )


def many(count, every, names=NAMES):
    """Looks at the process: after every so many calls."""
    teacher = toy_teacher()
    with tempfile.TemporaryDirectory() as place:
        calls = calls_of(teacher, Path(place))
        for number in range(1, count + 1):
            for name in names:
                calls[name]()
                shutil.rmtree(Path(place) / "run", ignore_errors=True)
            if number % every == 0:
                yield number, look(teacher)


if __name__ == "__main__":
    wanted = int(sys.argv[1])
    names = sys.argv[2:] or NAMES
    for number, left in many(wanted, max(wanted // 20, 1), names):
        print(number, left, flush=True)
