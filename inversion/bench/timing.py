"""How a piece of work is timed, and what all measurements share: the run, the device, the networks.

Both sides of a comparison are timed in turns in one run, so that whatever else the machine does
meets both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from distill.models import Classifier
from distill.students import build_student
from inversion.bench.replays import Replays, Work, copies_past_cache
from inversion.options import GeneratorOptions, ObjectiveOptions, SynthesisOptions
from inversion.parts.generator import Generator
from inversion.teacher import load_teacher
from synthesis_kernels.backend import resolve_device, resolve_precision
from synthesis_kernels.step import resolve_step

if TYPE_CHECKING:
    from distill.loop import StepProgress
    from inversion.cli.schema import BenchRun

Times = dict[str, dict[str, float]]
"""Milliseconds of each side: median and extremes."""
Module = TypeVar("Module", bound=nn.Module)

MANY_STEPS = 10**6
"""A run this long earns whatever a fast form of the step costs at first."""
UNTIMED = 4
"""Runs before the first that is timed: a step that is replayed is recorded in its second and third,
and compared in its fourth.
"""
LONG_ENOUGH = 0.02
"""Seconds that the clock can tell; shorter work is repeated."""
CALLS_BETWEEN_LOOKS = 10
"""On a GPU, where a look at the clock means waiting for the device."""


class Bench:
    """What all measurements share."""

    def __init__(self, run: BenchRun, progress: StepProgress | None = None) -> None:
        self.run = run
        self.progress = progress
        self.device = resolve_device(run.device)
        self.precision = resolve_precision(self.device, run.precision)
        self.step = resolve_step(run.step, self.device, steps=MANY_STEPS)
        self.done = 0

    def eagerly(self) -> Bench:
        """The same with eager steps, in which every operation shows itself."""
        return Bench(replace(self.run, step="eager"))

    @property
    def options(self) -> SynthesisOptions:
        """Of the synthesis: a generator of the size that peers use for 32×32 images, and their
        loss.
        """
        return SynthesisOptions(
            batch=self.run.batch,
            generator=GeneratorOptions(latent=256, width=64),
            objective=ObjectiveOptions(bn_relative=False),
        )

    def classifiers(self, tuned: bool) -> tuple[Classifier, Classifier]:
        """Fresh teacher and student; channels last for our side."""
        layout = torch.channels_last if tuned else torch.contiguous_format
        teacher = load_teacher(self.run.teacher, untrained=True, trust=self.run.trust)
        student = build_student(self.run.student, teacher.contract, 1)
        return place(teacher, self.device, layout), place(student, self.device, layout)

    def generator(self, teacher: Classifier) -> Generator:
        """Ours, fresh."""
        spec = teacher.spec
        size = self.options.generator
        generator = Generator(
            spec.channels, spec.size, spec.classes, latent=size.latent, width=size.width
        )
        return place(generator, self.device, torch.channels_last)

    def on_device(self, make: Callable[[], dict[str, Work]], size: int) -> dict[str, Work]:
        """Work of kernels, to be compared. On CUDA it is made several times, each with tensors of
        its own, so that they are more than the cache holds; `size` is the bytes of one.
        """
        works = make()
        if self.device.type != "cuda":
            return works
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        copies = [works, *(make() for _ in range(copies_past_cache(cache, size) - 1))]
        return {name: Replays([each[name] for each in copies]) for name in works}

    def compare(self, **work: Work) -> Times:
        """Time each in turns."""
        for each in work.values():
            for _ in range(UNTIMED):
                each()
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(self.run.repeats):
            for name, each in work.items():
                seconds[name].append(self.time(each))
        self.done += 1
        if self.progress:
            self.progress.update(self.done)
        return {name: milliseconds(values) for name, values in seconds.items()}

    def time(self, work: Work) -> float:
        """Seconds of one call; of several, where one is too short to be timed."""
        if isinstance(work, Replays):
            return work.seconds()
        count = 0
        self._wait()
        began = time.perf_counter()
        while True:
            work()
            count += 1
            if self.device.type == "cuda" and count % CALLS_BETWEEN_LOOKS:
                continue
            self._wait()
            elapsed = time.perf_counter() - began
            if elapsed > LONG_ENOUGH:
                return elapsed / count

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {
        "ms": 1e3 * statistics.median(seconds),
        "least_ms": 1e3 * min(seconds),
        "most_ms": 1e3 * max(seconds),
    }


def ratio(times: Times, other: str) -> float:
    """How many times as long as ours the other side takes."""
    return times[other]["ms"] / times["ours"]["ms"]


def precision_name(precision: torch.dtype) -> str:
    """As options name it."""
    return str(precision).removeprefix("torch.")


def place(module: Module, device: torch.device, layout: torch.memory_format) -> Module:
    """The module on the device, its weights in this layout."""
    placed: Any = module.to(device, memory_format=layout)  # type: ignore[call-overload] # not in torch's annotation
    return placed
