"""Jobs that the processes of torchrun claim from one another while they run.

torchrun keeps a store: a table of keys that all its processes reach. Whoever is free claims the
next job there, so that a slow process holds nobody up. A claim names the process that holds it, and
one that has gone, or was started anew, holds nothing.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from distill.loop import StepProgress
from distill.runtime import Runtime
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.kept import is_alive

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

Job = TypeVar("Job")
BEAT = 2.0
"""Seconds between two signs of life."""
SILENCE = 120.0
"""Seconds without one, after which a process of another machine counts as lost."""
LOOK = 0.25
"""Seconds between two looks at what others hold."""
START = 300.0
"""Seconds that are waited for the others to begin."""
DONE = "done by "
"""Before the name of a process: it has finished the job."""


class Claims:
    """One process's claims on numbered jobs. Its store's keys are for this work alone."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self.store = store
        self._rank = rank
        self._world = world
        self._beats: dict[str, tuple[int, float]] = {}
        self._end = threading.Event()
        host = socket.gethostname()
        self.name = f"{rank} {host} {os.getpid()} {secrets.token_hex(4)}"
        """Of this process, as no other was ever called."""
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def take(self, number: int) -> bool | None:
        """Claim a job: whether it is this process's now; None where it is done."""
        key = f"job/{number}"
        holder = self._swap(key, "", self.name)
        if holder.startswith(DONE):
            return None
        if holder != self.name and self.has_lost(holder):
            holder = self._swap(key, holder, self.name)
        return holder == self.name

    def free(self, number: int) -> None:
        """Leave a job to others."""
        self._swap(f"job/{number}", self.name, "")

    def finish(self, number: int) -> None:
        """Note that a job is done, whoever else has taken it meanwhile."""
        self.write(f"job/{number}", f"{DONE}{self.name}")

    def finisher(self, number: int) -> str:
        """The process that has finished a job."""
        return self.read(f"job/{number}").removeprefix(DONE)

    def begin(self) -> None:
        """Note that this process has claimed what it knows to be its own."""
        self.write(f"process/{self._rank}", self.name)

    def begun(self) -> int:
        """How many processes have."""
        return sum(bool(self.read(f"process/{rank}")) for rank in range(self._world))

    def has_lost(self, holder: str) -> bool:
        """Whether a process is there no more."""
        rank, host, process, _ = holder.split(" ")
        present = self.read(f"process/{rank}")
        if int(rank) >= self._world or present not in ("", holder):
            return True
        if host == socket.gethostname() and not is_alive(process):
            return True
        now = time.monotonic()
        count = self.store.add(f"beat/{holder}", 0)
        before, since = self._beats.get(holder, (-1, now))
        if count != before:
            since = now
        self._beats[holder] = (count, since)
        return now - since > SILENCE

    def read(self, key: str) -> str:
        """What is written under a key; empty where nothing is."""
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def write(self, key: str, text: str) -> None:
        """Write under a key."""
        self.store.set(key, text)

    def close(self) -> None:
        """Give no more signs of life."""
        self._end.set()
        self._beating.join(timeout=BEAT)

    def _swap(self, key: str, old: str, new: str) -> str:
        """What is under a key, once the old is replaced by the new."""
        return self.store.compare_set(key, old, new).decode()

    def _beat(self) -> None:
        """Give a sign of life now and then."""
        try:
            while not self._end.wait(BEAT):
                self.store.add(f"beat/{self.name}", 1)
        except RuntimeError:  # the store has gone, which the work itself will find
            return


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
    share of them. The `work` is a name that all processes give it, and no other work has.
    """
    if not runtime.claims:
        yield Share(runtime, jobs, None)
        return
    from torch.distributed import DistError

    try:
        claims = Claims(_open_store(work), runtime.rank, runtime.world)
        share = Share(runtime, jobs, claims)
        try:
            yield share
        except BaseException:
            share.release()
            raise
        finally:
            claims.close()
    except DistError as error:
        raise EchosetError(
            f"torchrun's store is out of reach ({_first_line(error)}), so process 0's machine or "
            "its torchrun may have ended; what is finished stays: give the same command again"
        ) from error


def _open_store(work: str) -> Store:
    """torchrun's store, of which this work has keys of its own."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    host = os.environ["MASTER_ADDR"]
    port = int(os.environ["MASTER_PORT"])
    return PrefixStore(f"echoset/{work}", TCPStore(host, port, is_master=False))


def rank_of(name: str) -> int:
    """The rank of the process of this name."""
    return int(name.split(" ")[0])


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
