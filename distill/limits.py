"""How much memory a file may ask for. Sizes are known from headers, and compared before memory is
taken.
"""

from __future__ import annotations

import os
from pathlib import Path

from synthesis_kernels.errors import EchosetError

VARIABLE = "ECHOSET_LIMIT_MB"
"""The environment's name for the limit."""
USUAL = 250
"""Megabytes that any file may take, however small it is."""
MEGABYTE = 10**6
MOST_TEXT = 64 * MEGABYTE
"""Bytes of a file of text (JSON, YAML): read, it takes many times as much."""


def limit() -> int:
    """Bytes that a file may take beyond twice its own size."""
    told = os.environ.get(VARIABLE, "").strip()
    if not told:
        return USUAL * MEGABYTE
    if not (told.isascii() and told.isdigit() and len(told) < 13):
        raise EchosetError(f"{VARIABLE} must be a whole number of megabytes, got '{told:.40}'")
    return int(told) * MEGABYTE


def require_room(needed: int, path: str | Path | None, content: str) -> None:
    """Refuse a file of which the content needs more bytes than twice the file's own and the
    limit; None for a file without a name.
    """
    own = Path(path).stat().st_size if path else 0
    if needed <= 2 * own + limit():
        return
    raise EchosetError(
        f"{path or 'a picture'}: {content} would take {needed / MEGABYTE:,.0f} MB of memory, and "
        f"the file has {own / MEGABYTE:,.3g} MB. Where you trust it, set {VARIABLE}="
        f"{-(-needed // MEGABYTE)} in the environment"
    )
