"""Reading what a run has left, and naming the file that can't be shown."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.files import read_log, unseal
from synthesis_kernels.errors import EchosetError


def read_document(file: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file."""
    with blaming(file):
        return unseal(json.loads(file.read_text())) if file.is_file() else {}


def last_of(log: Path, event: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of one kind of event, in order.

    A run that was stopped may have logged a step twice; the later line is the one that counts.
    """
    entries: dict[Hashable, dict[str, Any]] = {}
    for entry in read_log(log):
        if entry["event"] == event:
            entries[tuple(entry[key] for key in keys)] = entry
    return list(entries.values())


@contextmanager
def blaming(file: Path) -> Iterator[None]:
    """Name the file whose content can't be shown."""
    try:
        yield
    except KeyError as error:
        raise _unreadable(file, f"it lacks {error}") from error
    except (
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        IndexError,
        RecursionError,
    ) as error:
        raise _unreadable(file, str(error)) from error


def _unreadable(file: Path, problem: str) -> EchosetError:
    return EchosetError(f"{file} is not as echoset writes it: {problem}")
