"""What a recipe's step reports to the driver."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inversion.classes import say_spread

COLUMNS = 80
"""Letters of a line."""


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


def read_back(
    figures: dict[str, Tensor], *rows: Tensor
) -> tuple[dict[str, float], list[list[float]]]:
    """Scalars and rows of numbers, in one wait for the device. As float32, which has every whole
    number up to sixteen millions.
    """
    scalars = torch.stack([value.float() for value in figures.values()])
    parts = [scalars, *(row.float() for row in rows)]
    numbers = iter(torch.cat(parts).tolist())
    values = {name: next(numbers) for name in figures}
    return values, [list(itertools.islice(numbers, len(row))) for row in rows]


class Stopwatch:
    """Seconds from mark to mark; on CUDA by the device's clock. The host runs ahead of that, and
    would have to wait to look at its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.marks: list[Any] = []
        self.mark()

    def mark(self) -> None:
        """Note the time: now, or when the device gets here."""
        if not self.on_cuda:
            self.marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def seconds(self) -> list[float]:
        """Between the marks, which the device must have passed."""
        pairs = itertools.pairwise(self.marks)
        if not self.on_cuda:
            return [end - start for start, end in pairs]
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def show_counts(counts: list[int], quotas: list[int]) -> str:
    """How full the set is: each class, or how they differ, where a line would not hold all."""
    kept = f"kept {sum(counts)}/{sum(quotas)}"
    row = f"{kept} [{' '.join(map(str, counts))}]"
    return row if len(row) <= COLUMNS else f"{kept}, {say_spread(counts)}"
