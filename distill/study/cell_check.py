"""What a cell's file may say, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.sets.manifest_check import is_number
from distill.study.summary import FIGURES

TEXTS = ("set", "corruption", "method", "report")


def check_cell(result: Mapping[str, Any]) -> None:
    """Refuse, by a ValueError, what is not of the kind that a summary averages or shows."""
    for name in TEXTS:
        if not isinstance(result.get(name), str):
            raise ValueError(f"its {name} is no text")
    for name in ("seconds", "accuracy"):
        if not is_number(result.get(name)):
            raise ValueError(f"its {name} is no number")
    for name in FIGURES:
        if result.get(name) is not None and not is_number(result[name]):
            raise ValueError(f"its {name} is no number")
