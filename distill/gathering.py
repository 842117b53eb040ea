"""Files sent to process 0 through torchrun's store, where no disk is shared."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from distill.claims import LOOK, Claims, rank_of
from distill.files import write_atomically
from distill.loop import StepProgress
from distill.sharing import Share
from synthesis_kernels.errors import EchosetError

Job = TypeVar("Job")
CHUNK = 4 * 2**20
"""Bytes that are sent together."""
AHEAD = 4
"""Chunks that may lie in the store at a time."""
POLL = 0.002
"""Seconds between two looks for a chunk."""


def gather(
    share: Share[Job],
    folder: Path,
    finished: Callable[[Job], bool],
    files: Callable[[Job], list[Path]],
) -> None:
    """Bring every job's files into process 0's folder, from whoever has them. All processes call
    it, once all jobs are done.
    """
    claims = share.claims
    if claims is None:
        return
    if share.runtime.rank:
        _serve(claims, lambda number: files(share.jobs[number]))
        return
    lacking = [number for number, job in enumerate(share.jobs) if not finished(job)]
    if lacking:
        with StepProgress("fetching", len(lacking), share.runtime.quiet) as progress:
            for count, number in enumerate(lacking, 1):
                _fetch(claims, number, folder)
                progress.update(count)
    claims.write("over", claims.name)


def _fetch(claims: Claims, number: int, folder: Path) -> None:
    """Ask for a job's files, and write them."""
    holder = claims.finisher(number)
    turn = secrets.token_hex(8)
    claims.write("ask", json.dumps([holder, turn, number]))
    head = json.loads(_receive(claims, f"{turn}/head", holder))
    index = 0
    for name, size in head:
        if Path(name).name != name:
            raise EchosetError(f"process {rank_of(holder)} sends a file called {name!r}")
        parts = []
        for _ in range(0, size, CHUNK):
            parts.append(_receive(claims, f"{turn}/{index}", holder))
            index += 1
        write_atomically(folder / name, *parts)


def _receive(claims: Claims, key: str, holder: str) -> bytes:
    """What another process puts under a key, which goes from there."""
    _wait(claims, holder, lambda: claims.store.check([key]))
    content: bytes = claims.store.get(key)
    claims.store.delete_key(key)
    return content


def put(claims: Claims, key: str, content: bytes) -> None:
    """Put something under a key, of any size, for one process to fetch."""
    pieces = range(0, len(content), CHUNK)
    for index, first in enumerate(pieces):
        claims.store.set(f"{key}/{index}", content[first : first + CHUNK])  # type: ignore[arg-type]
    claims.write(f"{key}/pieces", str(len(pieces)))


def fetch(claims: Claims, key: str) -> bytes | None:
    """What was put under a key, which goes from there; None where nothing is."""
    pieces = claims.read(f"{key}/pieces")
    if not pieces:
        return None
    claims.store.delete_key(f"{key}/pieces")
    content = []
    for index in range(int(pieces)):
        content.append(claims.store.get(f"{key}/{index}"))
        claims.store.delete_key(f"{key}/{index}")
    return b"".join(content)


def drop(claims: Claims, key: str) -> None:
    """Take away what was put under a key, if nobody has fetched it."""
    pieces = claims.read(f"{key}/pieces")
    if not pieces:
        return
    claims.store.delete_key(f"{key}/pieces")
    for index in range(int(pieces)):
        claims.store.delete_key(f"{key}/{index}")


def _serve(claims: Claims, files: Callable[[int], list[Path]]) -> None:
    """Send what process 0 asks for, until it has everything."""
    served = ""
    while not claims.read("over"):
        asked = claims.read("ask")
        if asked and asked != served:
            served = asked
            holder, turn, number = json.loads(asked)
            if holder == claims.name:
                _send(claims, turn, files(number))
        claims.require_leader()
        time.sleep(LOOK)


def _send(claims: Claims, turn: str, files: list[Path]) -> None:
    """Put files into the store, piece by piece as they are taken from there."""
    head = [[path.name, path.stat().st_size] for path in files]
    claims.write(f"{turn}/head", json.dumps(head))
    for index, chunk in enumerate(_chunks(files)):
        if index >= AHEAD:
            _wait(claims, claims.leader, partial(_is_taken, claims, f"{turn}/{index - AHEAD}"))
        claims.store.set(f"{turn}/{index}", chunk)  # type: ignore[arg-type]


def _is_taken(claims: Claims, key: str) -> bool:
    return not claims.store.check([key])


def _chunks(files: list[Path]) -> Iterator[bytes]:
    for path in files:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def _wait(claims: Claims, other: str, ready: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    while not ready():
        if claims.has_lost(other):
            rank, host = other.split(" ")[:2]
            raise EchosetError(
                f"process {rank} on {host} has gone, and what it made lies there; give the same "
                "command again: with that machine nothing is lost, and without it that part is "
                "made again"
            )
        time.sleep(POLL)
