"""Files that survive a kill and are checked when they are read, and a log that can be read while it
grows.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from synthesis_kernels.errors import EchosetError
from synthesis_kernels.kept import is_alive

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system answers where a file has no room."""
FOREIGN = 86400.0
"""Seconds after which another machine's half-written file counts as left."""


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one, never half
    of one. What killed runs left half-written of this file goes.
    """
    size = sum(len(part) for part in parts)
    with naming_full_disk(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_torn_files(path)
        own = f"{socket.gethostname()}.{os.getpid()}-{secrets.token_hex(4)}"
        temporary = path.with_name(f".{path.name}.{own}.tmp")
        try:
            with open(temporary, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming_full_disk(path: Path, size: int = 0) -> Iterator[None]:
    """Say which file found no room, and how much there has to be."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        folder = next((each for each in path.absolute().parents if each.is_dir()), Path("/"))
        free = shutil.disk_usage(folder).free
        raise EchosetError(
            f"{path} can't be written: {error.strerror}; it takes {size / 1e6:.1f} MB, and "
            f"{folder} has {free / 1e6:.1f} MB left (or a quota or limit allows no more). Free "
            "that much there and give the same command again: what is finished stays"
        ) from error


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write one JSON document, a value on each line, in one rename."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


SEAL = "checksum"
"""In a JSON document that is read back: the SHA-256 of everything else in it."""


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON document that `unseal` can check."""
    write_json(path, seal(content))


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its checksum."""
    return {**content, SEAL: _checksum(content)}


def unseal(content: Any) -> dict[str, Any]:
    """A JSON document without its checksum; ValueError where it has changed since it was written.
    One that has none is taken as it is.
    """
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    rest = dict(content)
    stored = rest.pop(SEAL, None)
    if stored is not None and stored != _checksum(rest):
        raise ValueError(
            f"it has changed since it was written (who changed it on purpose deletes '{SEAL}')"
        )
    return rest


def _checksum(content: Mapping[str, Any]) -> str:
    """Of a document as it is read: there all keys are text."""
    as_read = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


FORMAT = 9
"""Of saved states and cells of studies, as a number: raise it when what they hold, or what is made
of it, changes.
"""
HEAD = b"echoset state, SHA-256 "
"""A state begins with it; the hash of all bytes after that line follows."""


def save_state(path: Path, key: str, state: dict[str, Any]) -> None:
    """Keep a loop's `state_dict()`; `key` says which job it belongs to."""
    buffer = io.BytesIO()
    torch.save({"key": f"{FORMAT} {key}", "state": state}, buffer)
    with buffer.getbuffer() as data:
        digest = hashlib.sha256(data).hexdigest()
        write_atomically(path, HEAD + f"{digest}\n".encode(), data)


def load_state(path: Path, *keys: str) -> dict[str, Any] | None:
    """The state saved for this very job, or None where there is none; another job's, which would be
    lost, is refused. Of several keys any will do.
    """
    _remove_torn_files(path)
    if not path.is_file():
        return None
    try:
        content = _read_state(path)
        saved_key = content["key"]
        state = content["state"]
    except Exception as error:  # a damaged file fails anywhere in torch's reader
        raise EchosetError(
            f"{path} cannot be read as saved state ({error}); delete it to start this job again"
        ) from error
    if saved_key not in [f"{FORMAT} {key}" for key in keys]:
        raise EchosetError(
            f"{path} was left by a stopped run with other options, data, device or version; go on "
            "with that one, choose another --out, or delete the file to start anew"
        )
    return state


def _read_state(path: Path) -> dict[str, Any]:
    """What a file holds whose bytes are those that were written."""
    with open(path, "rb") as file:
        head = file.readline(len(HEAD) + 65)
        start = file.tell()
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if head != HEAD + f"{digest}\n".encode():
            raise ValueError("its bytes are not those that were written, or another version's")
        file.seek(start)
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return content


def _remove_torn_files(path: Path) -> None:
    """Remove what runs that were killed while they wrote this file left beside it."""
    prefix = f".{path.name}."
    for torn in path.parent.glob(f"{glob.escape(prefix)}*-*.tmp"):
        writer = torn.name.removeprefix(prefix).rpartition("-")[0]
        host, _, process = writer.rpartition(".")
        if not (is_alive(process) if host == socket.gethostname() else _is_recent(torn)):
            torn.unlink(missing_ok=True)


def _is_recent(path: Path) -> bool:
    """Whether somebody may still write this file."""
    try:
        return time.time() - path.stat().st_mtime < FOREIGN
    except OSError:  # it has gone meanwhile
        return True


class JsonLines:
    """An append-only log: one JSON object a line, flushed at once."""

    def __init__(self, path: Path) -> None:
        with naming_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def write(self, event: str, **values: Any) -> None:
        """Append one event, on a line of its own behind one that a kill cut short."""
        line = json.dumps({"event": event, **values}) + "\n"
        with naming_full_disk(self.path, len(line)), open(self.path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = f"\n{line}"
            file.write(line.encode())


def read_log(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a log; a line that a kill cut short is passed over."""
    if not path.is_file():
        return []
    events = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events
