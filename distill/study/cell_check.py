"""What a cell's file may say, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.sets.manifest_check import is_number
from distill.study.summary import FIGURES, OWN_FIGURES

TEXTS = ("set", "corruption", "method", "report")


def check_cell(result: Mapping[str, Any]) -> None:
    """Refuse, by a ValueError, what is not of the kind that a summary averages or shows."""
    for name in TEXTS:
        if not isinstance(result.get(name), str):
            raise ValueError(f"its {name} is no text")
    for name in ("seconds", "accuracy"):
        if not is_number(result.get(name)):
            raise ValueError(f"its {name} is no number")
    own = result.get("own", {})
    if not isinstance(own, Mapping):
        raise ValueError("its own figures are no table")
    for figures, names in ((result, FIGURES), (own, OWN_FIGURES)):
        for name in names:
            if figures.get(name) is not None and not is_number(figures[name]):
                raise ValueError(f"its {name} is no number")
