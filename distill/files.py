"""Files that survive a kill, and a log that can be read while it grows."""

from __future__ import annotations

import glob
import io
import json
import os
import secrets
from pathlib import Path
from typing import Any

import torch

from synthesis_kernels.errors import EchosetError


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one, never half
    of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write one JSON document, a value on each line, in one rename."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


FORMAT = 8
"""Of saved states and cells of studies, as a number: raise it when what they hold, or what is made
of it, changes.
"""


def save_state(path: Path, key: str, state: dict[str, Any]) -> None:
    """Keep a loop's `state_dict()`; `key` says which job it belongs to."""
    buffer = io.BytesIO()
    torch.save({"key": f"{FORMAT} {key}", "state": state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path, key: str) -> dict[str, Any] | None:
    """The state saved for this very job, or None where there is none; another job's, which would be
    lost, is refused.
    """
    _remove_torn_files(path)
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved_key = content["key"]
        state = content["state"]
    except Exception as error:  # a damaged file fails anywhere in torch's reader
        raise EchosetError(
            f"{path} cannot be read as saved state ({error}); delete it to start this job again"
        ) from error
    if saved_key != f"{FORMAT} {key}":
        raise EchosetError(
            f"{path} was left by a stopped run with other options, data, device or version; go on "
            "with that one, choose another --out, or delete the file to start anew"
        )
    return state


def _remove_torn_files(path: Path) -> None:
    """Remove what runs that were killed while they wrote this file left beside it."""
    prefix = f".{path.name}."
    for torn in path.parent.glob(f"{glob.escape(prefix)}*-*.tmp"):
        process = torn.name.removeprefix(prefix).partition("-")[0]
        if not _is_alive(process):
            torn.unlink(missing_ok=True)


def _is_alive(process: str) -> bool:
    """Whether another process of this number may be writing still."""
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


class JsonLines:
    """An append-only log: one JSON object a line, flushed at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def write(self, event: str, **values: Any) -> None:
        """Append one event."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")


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
