"""A collection in progress: what is held, what was drawn for it, and how far the phases are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.tasks.places import count_decisions
from inversion.options import CollectOptions
from inversion.sources.choice import in_window
from inversion.sources.phases import Phase
from inversion.sources.stock import Stock

MADE = -1
"""The `round` of images that were made from others."""


class Collection:
    """How far a collection is, and what it came to; saving a run is saving this."""

    def __init__(self, stock: Stock, device: torch.device) -> None:
        self.stock = stock
        self.phase = 0
        self.block = 0
        self.blocks = -1
        """Blocks of the present phase; −1 before it has begun."""
        self.seconds = 0.0
        zeros = torch.zeros(stock.classes, dtype=torch.long, device=device)
        self.raw = zeros.clone()
        """Images drawn of each class."""
        self.accepted = zeros.clone()
        """Those of them that lie in the window."""
        self.needed = zeros - 1
        """Images drawn until each class was full; −1 while it isn't."""
        self.taken: dict[str, Tensor] = {}
        """Images of each class that came from each phase."""

    def next_phase(self) -> None:
        """Begin the phase after this one."""
        self.phase += 1
        self.block = 0
        self.blocks = -1

    def take(self, phase: Phase, images: Tensor, logits: Tensor, options: CollectOptions) -> None:
        """Keep what is wanted of a block."""
        allowed = in_window(logits, self.stock.task, options, phase.drawn)
        number = self.block if phase.drawn else MADE
        taken = self.stock.offer(images, logits, allowed, number)
        self.taken[phase.name] = self.taken.get(phase.name, 0) + taken
        if phase.drawn:
            self._count(self.stock.groups(logits), allowed)

    def _count(self, groups: Tensor, allowed: Tensor) -> None:  # (B,), (B,) bool
        """Note what a source gave."""
        self.raw += count_decisions(groups, self.stock.classes)
        self.accepted += count_decisions(groups[allowed], self.stock.classes)
        if self.stock.balanced:
            newly = (self.needed < 0) & (self.stock.held == self.stock.quotas)
            self.needed = torch.where(newly, self.raw.sum(), self.needed)

    def has_drawn_enough(self, options: CollectOptions) -> bool:
        """Whether all classes that may be taken from a source are full."""
        if not self.stock.balanced or not options.only:
            return False
        return not self.stock.missing()[list(options.only)].any()

    def figures_line(self, phase: Phase) -> str:
        """What is shown while it runs."""
        line = f"{phase.name}, block {self.block} of {self.blocks}; "
        if not self.stock.balanced:
            return line
        missing = self.stock.missing().tolist()
        short = [f"{label} by {count}" for label, count in enumerate(missing) if count]
        if not short:
            return line
        more = " …" if len(short) > 5 else ""
        return f"{line}short: {', '.join(short[:5])}{more}"

    def state_dict(self) -> dict[str, Any]:
        """Counters and the stock."""
        return vars(self) | {"stock": self.stock.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        device = self.raw.device
        for name, value in state.items():
            if name == "stock":
                self.stock.load_state_dict(value)
            elif name == "taken":
                self.taken = {phase: counts.to(device) for phase, counts in value.items()}
            elif isinstance(value, Tensor):
                setattr(self, name, value.to(device))
            else:
                setattr(self, name, value)
