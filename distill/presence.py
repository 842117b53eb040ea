"""What is named has to be there. No torch here: a command finds it out before that is imported,
which takes seconds.
"""

from __future__ import annotations

from pathlib import Path

from synthesis_kernels.errors import EchosetError, closest

WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar", ".pt2", ".ts", ".torchscript")
"""Endings of files of weights."""


def looks_like_file(name: str) -> bool:
    """Whether a name is that of a file of weights."""
    return "/" in name or Path(name).suffix in WEIGHT_FILES


def require_there(path: str | Path, kind: str) -> None:
    """Refuse a path that leads nowhere, and say where a like one does."""
    if not Path(path).exists():
        raise EchosetError(f"no {kind} at {path}{suggest_place(path)}")


def require_file(path: str | Path, kind: str) -> None:
    """Refuse a path that does not lead to a file."""
    if not Path(path).is_file():
        raise EchosetError(f"no {kind} at {path}{suggest_place(path)}")


def suggest_place(path: str | Path) -> str:
    """The end of a message about a path that leads nowhere: the one that was meant, if there is one
    that differs in one name alone.
    """
    parts = Path(path).parts
    for depth, name in enumerate(parts):
        place = Path(*parts[: depth + 1])
        if place.exists():
            continue
        try:
            beside = [each.name for each in place.parent.iterdir()]
        except OSError:  # no folder, or one that may not be read
            return ""
        close = closest(name, beside)
        meant = None if close is None else Path(place.parent, close, *parts[depth + 1 :])
        return f"; did you mean {meant}?" if meant and meant.exists() else ""
    return ""
