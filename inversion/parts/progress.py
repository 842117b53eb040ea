"""What a recipe's step reports to the driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """The figures of one step; each has to be finite."""

    figures: dict[str, float]
    """For the log and the check."""
    counts: list[int]
    """Images held of each class."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else the log keeps: seconds, a policy's weights."""
    line: str = ""
    """The same in words, for the progress bar."""


def planned_calls(call: int, calls: int, full: bool) -> int:
    """The calls asked for; twice as many where a class is still short after them."""
    return 2 * calls if call >= calls and not full else calls


def read_figures(figures: dict[str, Tensor]) -> dict[str, float]:
    """Scalars as numbers, in one wait for the device."""
    values = torch.stack([value.float() for value in figures.values()]).tolist()
    return dict(zip(figures, values, strict=True))


def show_counts(counts: list[int], quotas: list[int]) -> str:
    """How full the set is: each class where there are few, else the one that lacks most."""
    kept = f"kept {sum(counts)}/{sum(quotas)}"
    if len(counts) <= 10:
        return f"{kept} [{' '.join(map(str, counts))}]"
    lacking = [quota - count for count, quota in zip(counts, quotas, strict=True)]
    most = max(lacking)
    if most <= 0:
        return kept
    label = max(index for index, value in enumerate(lacking) if value == most)
    return f"{kept}, class {label} lacks {most}"
