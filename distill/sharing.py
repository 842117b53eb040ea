"""Jobs shared out among processes: claimed while they run, or dealt out beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

from distill.claims import LOOK, Claims, claiming
from distill.loop import StepProgress
from distill.runtime import Runtime

Job = TypeVar("Job")
START = 300.0
"""Seconds that are waited for the others to begin."""


class Share(Generic[Job]):
    """The jobs of one process, one after another as it comes to them: those that it claims, or
    without claims every world-th.
    """

    def __init__(self, runtime: Runtime, jobs: list[Job], claims: Claims | None) -> None:
        self.runtime = runtime
        self.jobs = jobs
        self.claims = claims
        numbers = list(range(len(jobs)))
        self._left = numbers if claims else runtime.share(numbers)
        self._own: list[int] = []
        self._current: int | None = None

    @property
    def total(self) -> int:
        """How many jobs there are to follow: with claims, those of all processes."""
        return len(self.jobs) if self.claims else len(self.runtime.share(self.jobs))

    @property
    def left(self) -> int:
        """How many jobs are to come yet, of those."""
        return len(self._left)

    @property
    def expected(self) -> int:
        """How many of them this process is likely to do beside the present one."""
        return -(-self.left // self.runtime.world) if self.claims else self.left

    def begin(self, finished: Callable[[Job], bool], begun: Callable[[Job], bool]) -> None:
        """Claim what is `finished` on this process's disk, before anybody claims anything else: on
        another's it would be made again. What was `begun` there comes next.
        """
        claims = self.claims
        if claims is None:
            return
        for number in self._left:
            if not finished(self.jobs[number]):
                continue
            is_own = claims.take(number)
            if is_own:
                self._own.append(number)
            elif is_own is None and claims.has_lost(claims.finisher(number)):
                claims.finish(number)
        claims.begin()
        self._left.sort(key=lambda number: not begun(self.jobs[number]))
        self._wait_for_all(claims)

    def leader_first(self, act: Callable[[], None]) -> None:
        """Do something in every process, after process 0 has done it."""
        claims = self.claims
        if claims is None:
            act()
            return
        if self.runtime.rank == 0:
            act()
            claims.write("first", claims.name)
            return
        with self._waiting("waiting for process 0", 1):
            while not claims.read("first"):
                claims.require_leader()
                time.sleep(LOOK)
        act()

    def __iter__(self) -> Iterator[Job]:
        number = self._next()
        while number is not None:
            self._current = number
            yield self.jobs[number]
            self._current = None
            if self.claims:
                self.claims.finish(number)
            number = self._next()

    def release(self) -> None:
        """Leave the job that was not finished to others."""
        if self.claims and self._current is not None:
            with suppress(RuntimeError):  # without the store nobody asks
                self.claims.free(self._current)

    def _next(self) -> int | None:
        """The number of the next job, once one is free; None when all are done."""
        if self.claims is None:
            return self._left.pop(0) if self._left else None
        number = self._claim(self.claims)
        if number is not None or not self._left:
            return number
        total = len(self.jobs)
        with self._waiting("waiting for other processes", total) as progress:
            while number is None and self._left:
                progress.update(total - len(self._left))
                time.sleep(LOOK)
                number = self._claim(self.claims)
        return number

    def _claim(self, claims: Claims) -> int | None:
        """Claim a job, if one is free now."""
        for number in [*self._own, *self._left]:
            is_own = claims.take(number)
            if is_own is False:
                continue
            self._left.remove(number)
            if number in self._own:
                self._own.remove(number)
            if is_own:
                return number
        return None

    def _wait_for_all(self, claims: Claims) -> None:
        """Wait until every process has claimed what it has."""
        world = self.runtime.world
        end = time.monotonic() + START
        with self._waiting("waiting for processes to begin", world) as progress:
            while claims.begun() < world and time.monotonic() < end:
                progress.update(claims.begun())
                time.sleep(LOOK)
        if claims.begun() < world:
            self.runtime.say(
                f"{claims.begun()} of {world} processes have begun after {START:.0f} s; going on "
                "without the others"
            )

    def _waiting(self, title: str, total: int) -> StepProgress:
        return StepProgress(title, total, self.runtime.quiet)


@contextmanager
def shared_out(runtime: Runtime, jobs: list[Job], work: str) -> Iterator[Share[Job]]:
    """The jobs as this process comes to them: under torchrun those that it claims, elsewhere its
    share of them. The `work` is a name that all processes give it.
    """
    if not runtime.claims:
        yield Share(runtime, jobs, None)
        return
    with claiming(runtime, work) as claims:
        share = Share(runtime, jobs, claims)
        try:
            yield share
        except BaseException:
            share.release()
            raise
