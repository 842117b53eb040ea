"""What every long loop needs around its steps: progress, a polite stop, and state that survives a
kill.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Interrupted(Exception):
    """The user stopped a loop; its state is on disk."""


class StopFlag:
    """Turns the first Ctrl-C or SIGTERM into a flag, so that a loop ends between steps with its
    state whole.

    A second Ctrl-C ends the process at once. Outside the main thread signals are left alone.
    """

    def __init__(self) -> None:
        self.raised = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._raise)
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _raise(self, number: int, frame: object) -> None:
        self.raised = True
        self._restore()
        try:
            print(
                "\nstopping after this step, keeping what is done (Ctrl-C again to stop at once)",
                file=sys.stderr,
                flush=True,
            )
        except OSError:  # of `2>&1 | tee`, Ctrl-C has ended the tee, too
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it stays open

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class Every:
    """True at most once in `seconds`, and where it is told what that costs, so seldom that the cost
    is a small share of the time. Decides when to save or draw, never what is computed.
    """

    SHARE = 0.02
    LONGEST = 300.0

    def __init__(self, seconds: float) -> None:
        self.seconds, self.wait = seconds, seconds
        self.last = time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self.last < self.wait:
            return False
        self.last = time.monotonic()
        return True

    @contextmanager
    def paying(self) -> Iterator[None]:
        """Around what is done when it is due."""
        began = time.monotonic()
        yield
        self.last = time.monotonic()
        self.wait = max(self.seconds, min((self.last - began) / self.SHARE, self.LONGEST))


class StepProgress:
    """One progress bar on standard error with a few live figures; silent when told so.

    Without a terminal (a log file, CI) it prints a plain line now and then instead of drawing.
    """

    def __init__(self, title: str, total: int, quiet: bool = False, start: int = 0) -> None:
        self.title, self.total, self.quiet = title, total, quiet
        self.console = Console(stderr=True)
        self.live = (
            not quiet and self.console.is_interactive and self.console.file.isatty()
        )  # whatever FORCE_COLOR says
        self._due = Every(10)
        self._began, self._start = time.monotonic(), start
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._task = self._bar.add_task(title, total=total, completed=start, figures="")

    def __enter__(self) -> StepProgress:
        if self.live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self._bar.stop()

    def update(self, done: int, figures: str = "", total: int | None = None) -> None:
        """Show that `done` of the total are done; `total` where it turned out to be another."""
        self.total = total or self.total
        if self.live:
            self._bar.update(self._task, completed=done, figures=figures, total=self.total)
        elif not self.quiet and self._due():
            left = (
                (time.monotonic() - self._began)
                / max(done - self._start, 1)
                * max(self.total - done, 0)
            )
            print(
                f"{self.title} {done}/{self.total}  {left:.0f} s left  {figures}",
                file=sys.stderr,
                flush=True,
            )
