"""A folder that appears whole or not at all, whoever writes it at the same time and whenever they
are killed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from synthesis_kernels.errors import EchosetError

try:
    import fcntl
except ImportError:  # not on Windows, where two at once are not kept apart
    fcntl = None  # type: ignore[assignment]

PART = ".part"
"""What is written so far; in an empty folder that is there already, or beside the new one."""
LOCK = ".lock"
"""Held while somebody writes; it says what, once the part is whole and only has to be moved."""
LAST = ("manifest.json", "about.json", "README.md")
"""Moved last: who finds one of them finds the rest."""


def place(out: Path, key: str, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, which then is `out`. One process at a time does; the `key` says
    what is written, so that another call can finish what a killed one had only to move.
    """
    beside = out.parent / f".{out.name}{LOCK}"
    # An empty folder may be a mount, or where somebody stands: it stays.
    is_folder = out.is_dir() and not _told(beside)
    lock = out / LOCK if is_folder else beside
    part = out / PART if is_folder else out.parent / f".{out.name}{PART}"
    if not _told(lock):
        _refuse_if_taken(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _alone(lock, out) as note:
        if not _is_whole(note, key, part, out):
            _require_free(out, note, is_folder)
            note.truncate(0)
            _fill(part, write)
            note.write(key)
            note.flush()
        try:
            _move(part, out, is_folder)
        except EchosetError:
            note.truncate(0)
            raise


def _told(lock: Path) -> str:
    """What a killed one has noted that it only had to move; nothing where there was none."""
    try:
        return lock.read_text(errors="replace")
    except OSError:
        return ""


def _is_whole(note: IO[str], key: str, part: Path, out: Path) -> bool:
    """Whether a killed one of this key had only to move its part, or had moved it."""
    note.seek(0)
    return note.read() == key and (part.is_dir() or out.is_dir())


def _require_free(out: Path, note: IO[str], is_folder: bool) -> None:
    """Refuse to write where something else is, whole or in part."""
    note.seek(0)
    if is_folder and note.read():
        raise EchosetError(
            f"{out} holds part of another export, which was stopped; give that command again to "
            "finish it, empty the folder, or choose another --out"
        )
    _refuse_if_taken(out)


def _refuse_if_taken(out: Path) -> None:
    taken = out.exists()
    if out.is_dir():
        taken = any(entry.name not in (PART, LOCK) for entry in out.iterdir())
    if taken:
        raise EchosetError(f"{out} is there already; choose another --out")


@contextmanager
def _alone(lock: Path, out: Path) -> Iterator[IO[str]]:
    """The file, while it is locked: nobody else is here. The lock ends with its process, however
    that ends. The file stays where it says what is to be moved.
    """
    with _locked(lock, out) as file:
        is_left = True
        try:
            yield file
            is_left = False
        finally:
            if fcntl is None:
                file.close()  # or it can't be deleted
            if not (is_left and _told(lock)):
                lock.unlink(missing_ok=True)


def _locked(lock: Path, out: Path) -> IO[str]:
    """The file, opened and locked; it is unlocked when it is closed."""
    while True:
        file = open(lock, "a+")  # noqa: SIM115 - it stays open
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise EchosetError(
                f"another process is writing {out} just now; let it finish, or choose another --out"
            ) from error
        if _is_still(lock, file.fileno()):
            return file
        file.close()  # who had it before has removed it


def _is_still(lock: Path, number: int) -> bool:
    """Whether the locked file is the one that the next process would open."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(lock))
    except FileNotFoundError:
        return False


def _fill(part: Path, write: Callable[[Path], None]) -> None:
    shutil.rmtree(part, ignore_errors=True)  # of one that was killed
    part.mkdir()
    try:
        write(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _move(part: Path, out: Path, is_folder: bool) -> None:
    if not part.is_dir():
        return
    if not is_folder:
        try:
            os.replace(part, out)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise EchosetError(f"{out} is there already; choose another --out") from error
        return
    for entry in sorted(part.iterdir(), key=lambda entry: (entry.name in LAST, entry.name)):
        os.replace(entry, out / entry.name)
    part.rmdir()
