"""A folder that appears whole or not at all, whoever writes it at the same time and whenever they
are killed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from distill.files import write_json
from synthesis_kernels.errors import EchosetError

try:
    import fcntl
except ImportError:  # not on Windows, where two at once are not kept apart
    fcntl = None  # type: ignore[assignment]

PART = ".part"
"""What is written so far; in an empty folder that is there already, or beside the new one."""
LOCK = ".lock"
"""Held while somebody writes."""
MOVING = ".moving"
"""In a folder that was there: the part is whole, and its files are being moved."""
LAST = ("manifest.json", "about.json", "README.md")
"""Moved last: who finds one of them finds the rest."""


def place(out: Path, key: str, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, which then is `out`. One process at a time does; the `key` says
    what is written, so that another call can finish what a killed one had only to move.
    """
    is_folder = out.is_dir()  # an empty one may be a mount, or where somebody stands: it stays
    _refuse_if_taken(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = out / LOCK if is_folder else out.with_name(f".{out.name}{LOCK}")
    with _alone(lock, out):
        _refuse_if_taken(out)
        part = out / PART if is_folder else out.with_name(f".{out.name}{PART}")
        if (out / MOVING).is_file():
            _check_key(out, key)
        else:
            _fill(part, write)
            if is_folder:
                write_json(out / MOVING, key)
        _move(part, out, is_folder)


def _refuse_if_taken(out: Path) -> None:
    ours = {PART, LOCK, MOVING}
    if not out.is_dir():
        taken = out.exists()
    elif (out / MOVING).is_file():
        taken = False
    else:
        taken = any(entry.name not in ours for entry in out.iterdir())
    if taken:
        raise EchosetError(f"{out} is there already; choose another --out")


@contextmanager
def _alone(lock: Path, out: Path) -> Iterator[None]:
    """While the file is locked, nobody else is here. The lock ends with its process, however that
    ends.
    """
    if fcntl is None:
        yield
        return
    with _locked(lock, out):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(lock: Path, out: Path) -> IO[str]:
    """The file, opened and locked; it is unlocked when it is closed."""
    while True:
        file = open(lock, "a")  # noqa: SIM115 - it stays open
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


def _check_key(out: Path, key: str) -> None:
    """Refuse to finish what is something else."""
    try:
        found = json.loads((out / MOVING).read_text())
    except ValueError:
        found = None
    if found != key:
        raise EchosetError(
            f"{out} holds part of another export, which was stopped; give that command again to "
            "finish it, empty the folder, or choose another --out"
        )


def _move(part: Path, out: Path, is_folder: bool) -> None:
    if not is_folder:
        try:
            os.replace(part, out)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise EchosetError(f"{out} is there already; choose another --out") from error
        return
    if part.is_dir():
        for entry in sorted(part.iterdir(), key=lambda entry: (entry.name in LAST, entry.name)):
            os.replace(entry, out / entry.name)
        part.rmdir()
    (out / MOVING).unlink()
