"""The folder that a verb writes to: marked as its own, and held by one process at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distill.files import naming_full_disk
from distill.locks import held_alone
from synthesis_kernels.errors import EchosetError


@contextmanager
def own_folder(
    out: str | Path, verb: str, names: Sequence[str], overwrite: bool = False
) -> Iterator[None]:
    """Refuse a folder where something of these names is that the verb has not made, unless it is
    to be written over; and one where another process is at work.
    """
    folder = Path(out)
    mark = mark_folder(folder, verb, names, overwrite)
    with held_alone(mark) as is_free:
        if not is_free:
            raise EchosetError(
                f"another process is at work in {folder}; wait until it is done, or choose another "
                "--out"
            )
        yield


def mark_folder(folder: Path, verb: str, names: Sequence[str], overwrite: bool) -> Path:
    """Mark a folder as the verb's, if nothing of others would be written over; gives the mark."""
    mark = folder / f".{verb}.echoset"
    if not (mark.is_file() or overwrite):
        for name in names:
            if (folder / name).exists():
                raise EchosetError(
                    f"{folder / name} is there, and no {verb} has made it; choose another --out, "
                    "or have it written over: --overwrite"
                )
    if folder.exists() and not folder.is_dir():
        raise EchosetError(f"{folder} is a file; --out names a folder")
    with naming_full_disk(mark):
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return mark
