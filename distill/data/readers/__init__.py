"""Layouts of image data: one file each, and one line in `READERS`.

A new layout is a module with the functions of `reader.Reader`.
"""

from __future__ import annotations

from pathlib import Path

from distill.data.readers import cifar, folders, idx, npz, pairs
from distill.data.readers.reader import Content, Reader, Request
from distill.presence import require_there
from synthesis_kernels.errors import EchosetError

READERS: tuple[Reader, ...] = (
    npz,
    idx,
    cifar,
)
"""Every layout that files name; they are asked in this order."""
REST: Reader = folders
"""Takes any other folder."""
MAPS: tuple[Reader, ...] = (
    npz,
    pairs,
)
"""What label maps are read from."""


def read_path(root: Path, request: Request) -> Content:
    """Images and labels of what lies at a path, in whatever layout."""
    require_there(root, "data")
    reader, path = _find_maps(root, request) or _find_reader(root, request.split)
    return Content(*reader.read(path, request))


def _find_maps(root: Path, request: Request) -> tuple[Reader, Path] | None:
    """Who reads label maps, where such are wanted, or images alone that lie beside some; None where
    the data lie in another layout.
    """
    if request.maps is None:
        beside = not request.labelled and pairs.has_maps(root, request.split)
        return (pairs, root) if beside else None
    for reader in MAPS:
        if reader.is_at(root, request.split):
            return reader, root
    if not request.labelled:
        return None
    known = ", or ".join(reader.describe(request.split) for reader in MAPS)
    raise EchosetError(f"{root} has no label maps that this understands: expected {known}")


def _find_reader(root: Path, split: str) -> tuple[Reader, Path]:
    """Who reads the data at the path or below it, and where; several below would be a choice that
    is the user's.
    """
    for reader in READERS:
        if reader.is_at(root, split):
            return reader, root
    below = [(reader, path) for reader in READERS for path in reader.find_below(root, split)]
    if len(below) > 1:
        names = ", ".join(str(path) for _, path in below)
        raise EchosetError(f"{root} holds several data sets; name one of {names}")
    if below:
        return below[0]
    if REST.is_at(root, split):
        return REST, root
    known = ", ".join(reader.describe(split) for reader in READERS)
    raise EchosetError(
        f"{root} is no data set this understands: expected {known}, or {REST.describe(split)}"
    )
