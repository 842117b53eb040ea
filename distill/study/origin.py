"""What a cell's result belongs to: a file made with anything else must not be taken for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

MOST_TOLD = 3
"""Differences that a message names."""
LONGEST = 40
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Origin:
    """Options, teacher and data that a result was made with, by name."""

    settings: Mapping[str, Any]
    """What options say; a message tells their values."""
    contents: Mapping[str, str]
    """Hashes of networks and data; a message says only that they are others."""

    @cached_property
    def key(self) -> str:
        """One word for all of it."""
        return sha256(json.dumps(self.document).encode()).hexdigest()

    @cached_property
    def document(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        flat = dict(_flat(self.settings)) | dict(self.contents)
        document: dict[str, Any] = json.loads(json.dumps(flat))
        return document

    def differences(self, earlier: Any) -> str:
        """What an earlier document has otherwise, in words; nothing where it can't be told."""
        if not isinstance(earlier, Mapping):
            return ""
        told = []
        for name, value in self.document.items():
            if name in earlier and earlier[name] != value:
                told.append(self._tell(name, earlier[name], value))
        more = [f"and {len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else []
        return ", ".join(told[:MOST_TOLD] + more)

    def _tell(self, name: str, before: Any, now: Any) -> str:
        if name in self.contents:
            return f"another {name}"
        return f"{name} was {_show(before)} and is {_show(now)}"


def _flat(options: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """All options in a group by their whole names."""
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{group}{name}.")
        else:
            yield f"{group}{name}", value


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
