"""Compiled code that is kept between runs, and loaded only as it was made, by this user."""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

OTHERS = stat.S_IWGRP | stat.S_IWOTH
"""That others than the owner may write."""


def cache_folder() -> Path:
    """Where compiled code is kept between runs: ECHOSET_CACHE, else the user's cache folder;
    without one that can be written to, a folder of this process's own.
    """
    chosen = os.environ.get("ECHOSET_CACHE")
    if chosen:
        return Path(chosen)
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = caches / "echoset"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # no home at all
        return _own_folder()
    if not os.access(folder, os.W_OK):
        return _own_folder()
    return folder


@functools.cache
def _own_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="echoset-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def is_alive(process: str) -> bool:
    """Whether another process of this number may be at work still on this machine."""
    # In a container, the process before this one may have had the same number.
    if process == str(os.getpid()):
        return False
    # Elsewhere the question would be a signal.
    if os.name != "posix":
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):  # somebody else's, or no number
        return True
    return True


class Kept:
    """A library's file in a folder. Its name ends in the hash of its bytes; of a file that has not
    those, or that others could have written, nothing is run.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._make_safe()

    def _make_safe(self) -> None:
        """Leave a folder that others can write to for one of this process's own."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        problem = _foreign(self.folder.stat())
        if problem:
            _say(
                f"{self.folder} {problem}, so no kernels are run from there: they are compiled for "
                "this process alone (ECHOSET_CACHE names a folder that only you can write to)"
            )
            self.folder = _own_folder()

    def load(self) -> ctypes.CDLL | None:
        """The library, where a whole one is there; any other is removed, and that is said."""
        for file in sorted(self.folder.glob(f"{self.name}-*.so")):
            problem, library = _load_checked(file)
            if library is not None:
                return library
            _say(f"{file} {problem}; the kernels are compiled again")
            file.unlink(missing_ok=True)
        return None

    def make(self, build: Callable[[Path], None]) -> ctypes.CDLL:
        """Have the library built in a folder of its own, keep it, and load it."""
        self._clear_killed()
        prefix = f".building-{os.getpid()}-"
        with tempfile.TemporaryDirectory(prefix=prefix, dir=self.folder) as folder:
            made = Path(folder) / f"{self.name}.so"
            build(made)
            with open(made, "rb+") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
                os.fsync(content.fileno())
            made.chmod(0o700)
            # Several processes may build at once: the last one wins, and all files are the same.
            file = self.folder / f"{self.name}-{digest[:32]}.so"
            os.replace(made, file)
        problem, library = _load_checked(file)
        if library is None:
            raise OSError(f"{file} {problem}")
        return library

    def _clear_killed(self) -> None:
        """Remove what builds have left that were killed."""
        for folder in self.folder.glob(".building-*-*"):
            if not is_alive(folder.name.split("-")[1]):
                shutil.rmtree(folder, ignore_errors=True)


def _load_checked(file: Path) -> tuple[str, ctypes.CDLL | None]:
    """The library, or what is wrong with its file."""
    try:
        with open(file, "rb") as content:
            problem = _foreign(os.fstat(content.fileno()))
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        return f"can't be read ({error.strerror})", None
    if problem:
        return problem, None
    if file.stem.rpartition("-")[2] != digest[:32]:
        return "is damaged", None
    return "", ctypes.CDLL(str(file))


def _foreign(status: os.stat_result) -> str:
    """Who else could have changed a file or what is in a folder; nothing where nobody could."""
    if os.name != "posix":
        return ""
    if status.st_uid not in (0, os.getuid()):
        return "belongs to another user"
    return "can be written to by others" if status.st_mode & OTHERS else ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
