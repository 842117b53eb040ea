"""Files by which processes know of one another. The system releases what a killed process held.

Where there are no such locks, as on some network drives, nobody waits.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

TAKEN = (errno.EAGAIN, errno.EACCES)
"""What the system answers where another process holds a lock."""


@contextmanager
def held_alone(file: Path) -> Iterator[bool]:
    """Hold the file while inside; gives whether no other process does."""
    with open(file, "ab") as held:
        yield fcntl is None or _try(lambda: fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB))


@contextmanager
def in_turn(file: Path, name: str, waiting: Callable[[], object]) -> Iterator[None]:
    """Hold a name while inside, of any number that share the file; `waiting` is called where
    another process holds it, until that has let go.
    """
    # A name is a byte of the file, which need not be there.
    place = int.from_bytes(sha256(name.encode()).digest()[:4], "big")
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "ab") as held:
        if fcntl is not None:
            ask = fcntl.LOCK_EX | fcntl.LOCK_NB
            if not _try(lambda: fcntl.lockf(held, ask, 1, place)):
                waiting()
                fcntl.lockf(held, fcntl.LOCK_EX, 1, place)
        yield


def _try(lock: Callable[[], object]) -> bool:
    """Whether the lock was not another's."""
    try:
        lock()
    except OSError as error:
        return error.errno not in TAKEN
    return True
