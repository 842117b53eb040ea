"""How long a run takes, and in how much memory: one line from its first steps.

What is said follows from the clock, and nothing else does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

SHORT = 20.0
"""Seconds below which nobody needs to be told how long a run takes."""
LONG_STEP = 2.0
"""Seconds of a first step that says enough by itself; what comes but once is little beside it."""
ENOUGH = 1.0
"""Seconds of shorter steps that say enough, after the first one."""


@dataclass(frozen=True)
class Part:
    """So many steps of one kind."""

    count: int
    name: str
    """What one is called, as its plural is by an s."""
    each: float
    """Seconds of one."""

    @property
    def seconds(self) -> float:
        """Of all."""
        return self.count * self.each

    def describe(self) -> str:
        """As in `60 calls of 8 s`."""
        return f"{self.count:,} {self.name}{'s' if self.count != 1 else ''} of {_brief(self.each)}"


def describe(parts: Sequence[Part], memory: float | None = None, most: bool = False) -> str:
    """As in `about 12 minutes (60 calls of 8 s), memory about 1.2 GiB`; at `most` so long, where
    the run may be over before. `memory` in bytes.
    """
    named = [part.describe() for part in parts]
    told = " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
    line = f"{'at most ' if most else ''}about {duration(sum(part.seconds for part in parts))}"
    line += f" ({told})"
    if memory:
        line += f", memory about {memory / 2**30:.1f} GiB"
    return line


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for limit, size, name in ((99, 1, "seconds"), (99, 60, "minutes"), (48, 3600, "hours")):
        if seconds < limit * size:
            value = seconds / size
            return (
                f"{value:.1f} {name}" if name == "hours" and value < 10 else f"{value:.0f} {name}"
            )
    return f"{seconds / 86400:.1f} days"


def _brief(seconds: float) -> str:
    if seconds < 1:
        milliseconds = seconds * 1e3
        return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def memory_taken(device: torch.device | None = None) -> float | None:
    """Most bytes that this process has held so far: of the device on CUDA, else of the host."""
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        return float(torch.cuda.max_memory_reserved(device)) or None
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)


class Outlook:
    """Watches a loop's first steps, and says once what all of it will take."""

    def __init__(
        self,
        title: str,
        name: str,
        say: Callable[[str], None],
        loops: int = 1,
        start: int = 0,
        most: bool = False,
    ) -> None:
        """`name` is what a step is called. There are so many `loops` to come, of which this one
        began at step `start`. `most`: it may be over before all steps.
        """
        self.title = title
        self.name = name
        self.loops = loops
        self.start = start
        self.most = most
        self._say = say
        self._told = False
        self._began = time.perf_counter()
        self._first: tuple[int, float] | None = None

    def look(self, done: int, total: int) -> None:
        """After a step, of which `done` of the `total` are done."""
        if self._told:
            return
        each = self._time_step(done)
        if each is None:
            return
        self._told = True
        left = total - self.start + total * (self.loops - 1)
        part = Part(left, self.name, each)
        if part.seconds >= SHORT:
            self._say(f"{self.title}: {describe([part], memory_taken(), self.most)}")

    def _time_step(self, done: int) -> float | None:
        """Seconds of a step, once enough of them were made."""
        now = time.perf_counter()
        if self._first is None:
            if done <= self.start:
                return None
            self._first = (done, now)
            spent = now - self._began
            each = spent / (done - self.start)
            return each if each >= LONG_STEP else None
        first, at = self._first
        if done <= first or now - at < ENOUGH:
            return None
        return (now - at) / (done - first)
