"""Jobs that the processes of torchrun claim from one another while they run.

torchrun keeps a store: a table of keys that all its processes reach. Whoever is free claims the
next job there, so that a slow process holds nobody up. A claim names the process that holds it, and
one that has gone, or was started anew, holds nothing.

The store outlives the processes. Where torchrun starts them anew, all of the last life have ended
before any of the next begins. Nothing that torchrun tells them is equal on all machines and new in
each life: its count of restarts is each machine's own. So process 0 begins a life by writing its
name, and the others look for that of one that is there. Keys of other lives are passed over.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distill.loop import StepProgress
from distill.runtime import Runtime
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.kept import is_alive

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

BEAT = 2.0
"""Seconds between two signs of life."""
SILENCE = 120.0
"""Seconds without one, after which a process of another machine counts as lost."""
LOOK = 0.25
"""Seconds between two looks at what others hold."""
DONE = "done by "
"""Before the name of a process: it has finished the job."""
LATE = 300.0
"""Seconds after which a process joins those that have ended without it."""
_uses: Counter[tuple[int, str]] = Counter()
"""How often this process has come to a work of this name."""


class Claims:
    """One process's claims on jobs, by number or name. Its store's keys are for this work alone,
    and once it has joined the others for their life.
    """

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self.store = store
        self._whole = store
        self._rank = rank
        self._world = world
        self._beats: dict[str, tuple[int, float]] = {}
        self._end = threading.Event()
        self.name = f"{rank} {_machine()} {os.getpid()} {secrets.token_hex(4)}"
        """Of this process, as no other was ever called."""
        self.leader = ""
        """The name of process 0, once this one has joined the others."""
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def join(self) -> None:
        """Wait for process 0 to begin a life, and keep to that."""
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        if self._rank == 0:
            self.write("leader", self.name)
        start = time.monotonic()
        first = leader = self.read("leader")
        beats = self._beats_of(first)
        while not leader or (leader == first and not self._is_there(leader, beats)):
            is_late = time.monotonic() - start > LATE
            if leader and is_late and self.read(f"{leader}/over"):
                break
            time.sleep(LOOK)
            leader = self.read("leader")
        self.leader = leader
        self.store = PrefixStore(leader, self._whole)

    def take(self, number: int | str) -> bool | None:
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

    def finish(self, number: int | str) -> None:
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
        rank, host, numbers, process, _ = holder.split(" ")
        present = self.read(f"process/{rank}")
        if int(rank) >= self._world or present not in ("", holder):
            return True
        if f"{host} {numbers}" == _machine() and not is_alive(process):
            return True
        now = time.monotonic()
        count = self._beats_of(holder)
        before, since = self._beats.get(holder, (-1, now))
        if count != before:
            since = now
        self._beats[holder] = (count, since)
        return now - since > SILENCE

    def require_leader(self) -> None:
        """Refuse to wait for process 0 where it has gone before the end."""
        if self.has_lost(self.leader) and not self.read("over"):
            raise EchosetError("process 0 has gone before the end; give the same command again")

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

    def _is_there(self, name: str, beats: int) -> bool:
        """Whether a process is at work: on another machine, whether it has given a sign of life
        since these.
        """
        _, host, numbers, process, _ = name.split(" ")
        if name == self.name:
            return True
        if f"{host} {numbers}" == _machine():
            return is_alive(process)
        return self._beats_of(name) > beats

    def _beats_of(self, name: str) -> int:
        """How many signs of life a process has given."""
        return self._whole.add(f"beat/{name}", 0)

    def _beat(self) -> None:
        """Give a sign of life now and then."""
        try:
            while not self._end.wait(BEAT):
                self._whole.add(f"beat/{self.name}", 1)
        except RuntimeError:  # the store has gone, which the work itself will find
            return


@contextmanager
def claiming(runtime: Runtime, work: str) -> Iterator[Claims]:
    """This process's claims on parts of a work, once process 0 has come to it. All processes come
    to works of one name in one order, however often.
    """
    from torch.distributed import DistError

    _uses[runtime.rank, work] += 1
    place = f"{work} {_uses[runtime.rank, work]}"
    try:
        claims = Claims(_open_store(place), runtime.rank, runtime.world)
        try:
            with StepProgress("waiting for process 0", 1, runtime.quiet):
                claims.join()
            yield claims
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


def _machine() -> str:
    """This machine's name, and that of its process numbers: containers may share the first, and
    have numbers of their own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        numbers = f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        numbers = "-"
    return f"{socket.gethostname()} {numbers}"


def rank_of(name: str) -> int:
    """The rank of the process of this name."""
    return int(name.split(" ")[0])


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
