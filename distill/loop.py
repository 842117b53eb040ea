"""What every long loop needs around its steps: progress, a polite stop, and state that survives a
kill.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from distill.files import JsonLines
from distill.outlook import Outlook
from distill.pacing import Every
from distill.team import SOLO, Team
from distill.tracking import Logger, Tracker
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.terminal import plain

Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
"""What `signal.signal` takes and gives back."""


class Interrupted(Exception):
    """The user stopped a loop; its state is on disk."""


class StopFlag:
    """Turns the first Ctrl-C or SIGTERM into a flag, so that a loop ends between steps with its
    state whole.

    A second Ctrl-C ends the process at once. A second SIGTERM does nothing until the loop has
    ended: where Slurm tells every process to stop, torchrun tells its own once more, while they
    save. Outside the main thread signals are left alone.
    """

    def __init__(self) -> None:
        self.raised = False
        self._previous: dict[int, Handler] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._raise)
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if signal.SIGINT not in self._previous:  # the second
            return
        self.raised = True
        signal.signal(signal.SIGINT, self._previous.pop(signal.SIGINT))
        message = "stopping after this step, keeping what is done (Ctrl-C again to stop at once)"
        try:
            print(f"\n{message}", file=sys.stderr, flush=True)
        except OSError:  # of `2>&1 | tee`, Ctrl-C has ended the tee, too
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it stays open

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


BARS = ((110, 40), (70, 20), (0, 10))
"""Least widths of the terminal, and the bar's there."""
TIME = len("0:00:00")
"""Width of the time left."""


class StepProgress:
    """One progress bar on standard error with a few live figures; silent when told so.

    Without a terminal (a log file, CI) it prints a plain line now and then instead of drawing.
    """

    def __init__(self, title: str, total: int, quiet: bool = False, start: int = 0) -> None:
        self.title = plain(title)
        self.total = total
        self.quiet = quiet
        self.console = Console(stderr=True)
        # FORCE_COLOR has a console say that it is a terminal; the file knows better.
        is_terminal = self.console.is_interactive and self.console.file.isatty()
        self.live = is_terminal and not quiet
        self._due = Every(10)
        self._began = time.monotonic()
        self.start = start
        self._drawn = BarColumn()
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            self._drawn,
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True)),
        )
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._task = self._bar.add_task(self.title, total=total, completed=start, figures="")
        self._fit("")

    def __enter__(self) -> StepProgress:
        if self.live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Say something beside the bar."""
        if self.quiet:
            return
        line = plain(line)
        if self.live:
            self.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def update(self, done: int, figures: str = "", total: int | None = None) -> None:
        """Show that `done` of the total are done; `total` where it turned out to be another."""
        self.total = total or self.total
        figures = plain(figures)
        if self.live:
            self._bar.update(self._task, completed=done, total=self.total)
            self._fit(figures)
        elif not self.quiet and self._due():
            each = (time.monotonic() - self._began) / max(done - self.start, 1)
            left = each * max(self.total - done, 0)
            line = f"{self.title} {done}/{self.total}  {left:.0f} s left  {figures}"
            print(line, file=sys.stderr, flush=True)

    def _fit(self, figures: str) -> None:
        """Leave away what a narrow terminal has no room for: of figures the last, then of the bar,
        then of the title. The count and the time left stay.
        """
        width = self.console.width
        self._drawn.bar_width = next(size for least, size in BARS if width >= least)
        count = 2 * len(str(self.total)) + 1
        room = width - self._drawn.bar_width - count - TIME - 4
        title = self.title if len(self.title) <= room else f"{self.title[: max(room - 1, 0)]}…"
        room -= len(title)
        parts = figures.split("  ")
        while parts and len("  ".join(parts)) > room:
            parts.pop()
        self._bar.update(self._task, description=title, figures="  ".join(parts))


class Loop:
    """What a long loop needs around its steps, and the one place that knows it.

    `record` writes the figures of a step to the log and refuses those that are not finite.
    `advance` shows them, saves the state when it is due, and ends the loop after a Ctrl-C.

        with Loop("distilling", steps, save=save, seconds=state.seconds) as loop:
            while state.step < steps:
                figures = step()
                loop.record("distill", figures, "lower the learning rate", step=state.step)
                loop.advance(state.step, show(figures))
    """

    def __init__(
        self,
        title: str,
        total: int,
        quiet: bool = False,
        start: int = 0,
        save: Callable[[float], Path] | None = None,
        log: Path | None = None,
        seconds: float = 0.0,
        work: str = "the run",
        step: str = "step",
        loops: int = 1,
        logger: Logger | None = None,
        team: Team = SOLO,
    ) -> None:
        """`save` keeps the state, given the seconds spent so far, and names its file; `work` is
        what the user is told has stopped. `step` names a step in the estimate of time that is
        printed after the first few; empty prints none. The estimate is for so many `loops` like
        this one. The `logger` gets what is logged. A `team` stops
        and saves at one step: where any of its processes was told to, and when the first one says.
        """
        self.work = work
        self._team = team
        self._tracker = Tracker(logger, work)
        self._save = save
        self._log = JsonLines(log) if log else None
        self._seconds = seconds
        self._began = time.perf_counter()
        self._due = Every(20)
        self._flag = StopFlag()
        self._progress = StepProgress(title, total, quiet, start)
        self._step = step
        self._loops = loops
        self._outlook: Outlook | None = None

    def __enter__(self) -> Loop:
        self._flag.__enter__()
        progress = self._progress.__enter__()
        if self._step:
            self._outlook = Outlook(
                progress.title, self._step, progress.say, self._loops, progress.start
            )
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, value, trace)
        self._flag.__exit__(kind, value, trace)

    @property
    def seconds(self) -> float:
        """Seconds spent on this work, those of earlier, stopped runs included."""
        return self._seconds + time.perf_counter() - self._began

    @property
    def stopping(self) -> bool:
        """Whether the user asked to stop."""
        return self._team.any(self._flag.raised)[0]

    def watch(self, part: str, step: str, start: int) -> Outlook:
        """What says how long a part of the work takes at most, once it has seen a few steps."""
        progress = self._progress
        title = f"{progress.title}, {part}"
        return Outlook(title, step, progress.say, start=start, most=True)

    def record(
        self, event: str, figures: Mapping[str, float], remedy: str, place: str, **more: Any
    ) -> None:
        """Log a step's figures; refuse any that is not finite, naming it, the place and a
        remedy.
        """
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        if bad:
            raise EchosetError(f"{bad[0]} is {figures[bad[0]]} at {place}; {remedy}")
        if self._log:
            self._log.write(event, **more, **figures)

    def note(self, event: str, **values: Any) -> None:
        """Log something that is not a step's figures."""
        if self._log:
            self._log.write(event, **values)

    def say(self, line: str) -> None:
        """Tell the user, beside the progress."""
        self._progress.say(line)

    def track(self, figures: Mapping[str, float], step: int, part: str = "") -> None:
        """Hand figures that were recorded to the user's logger, if there is one."""
        self._tracker.log(figures, step, part)

    def advance(
        self,
        done: int,
        figures: str | None = "",
        total: int | None = None,
        keep: bool = False,
        finished: bool = False,
    ) -> None:
        """Show progress, save where it is due, and stop where the user asked for it.

        Where `figures` is None, what is shown stays as it is. With `keep` the state is saved in any
        case. Where the work is `finished`, there is nothing left to stop.
        """
        if figures is not None:
            self._progress.update(done, figures, total)
        if self._outlook:
            self._outlook.look(done, self._progress.total)
        # Asked once: a signal may come between two looks.
        stopping = self._flag.raised
        due = keep
        if self._save and self._team.is_first and not (stopping or keep):
            due = self._due()
        stopping, due = self._team.any(stopping, due)
        kept = None
        if self._save and (stopping or due):
            with self._due.paying():
                kept = self._save(self.seconds)
        if stopping and not finished:
            keeps = f"; {kept} keeps it" if kept else ""
            raise Interrupted(f"{self.work} stopped{keeps}")
