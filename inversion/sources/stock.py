"""Images a teacher has decided on, kept while their class has room; all of it stays on the
device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Stock:
    """Slots for so many images of each class, or of all classes together where it need not be
    balanced.

    The first images to come are those that are kept, in their order.
    """

    def __init__(
        self, quotas: list[int], shape: tuple[int, int, int], balanced: bool, device: torch.device
    ) -> None:
        self.classes, self.total, self.balanced = len(quotas), sum(quotas), balanced
        self.quotas = torch.tensor(quotas if balanced else [self.total], device=device)
        # One slot more: what is turned away is written there.
        self.images = torch.zeros(self.total + 1, *shape, dtype=torch.uint8, device=device)
        self.logits = torch.zeros(self.total + 1, self.classes, device=device)
        self.round = torch.zeros(self.total + 1, dtype=torch.int32, device=device)
        self.held = torch.zeros_like(self.quotas)

    def offer(
        self, images: Tensor, logits: Tensor, allowed: Tensor, number: int
    ) -> Tensor:  # (K,) images taken
        """Take what is allowed, (B,) bool, and fits; `number` says in which round they came."""
        labels = logits.argmax(1)
        group = labels if self.balanced else torch.zeros_like(labels)
        member = (group[:, None] == torch.arange(len(self.quotas), device=labels.device)) & allowed[
            :, None
        ]
        place = (self.held + member.cumsum(0)).gather(1, group[:, None])[
            :, 0
        ] - 1  # within its class
        welcome = allowed & (place < self.quotas[group])
        first = self.quotas.cumsum(0) - self.quotas
        slot = torch.where(welcome, first[group] + place, self.total)
        self.images[slot], self.logits[slot], self.round[slot] = images, logits, number
        self.images[-1], self.logits[-1] = (
            0,
            0,
        )  # which of several stayed there depends on the threads; the state must not
        self.held = torch.minimum(self.held + member.sum(0), self.quotas)
        return torch.zeros(self.classes, dtype=torch.long, device=labels.device).index_add_(
            0, labels, welcome.long()
        )

    @property
    def full(self) -> bool:
        """Whether no room is left. Waits for the device."""
        return bool((self.held == self.quotas).all())

    def missing(self) -> Tensor:  # (K,), or (1,) where it need not be balanced
        """Images each class lacks, or all together."""
        return self.quotas - self.held

    def kept(self) -> Tensor:  # (n,)
        """Filled slots, class by class in turn, so that any part of them is as balanced as the
        whole.
        """
        slots = torch.arange(self.total, device=self.held.device)
        group = torch.repeat_interleave(
            torch.arange(len(self.quotas), device=slots.device), self.quotas
        )
        place = slots - (self.quotas.cumsum(0) - self.quotas)[group]
        filled = slots[place < self.held[group]]
        return filled[(place[filled] * len(self.quotas) + group[filled]).argsort()]

    def state_dict(self) -> dict[str, Any]:
        """Everything it holds."""
        return {name: getattr(self, name) for name in ("images", "logits", "round", "held")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name, value in state.items():
            getattr(self, name).copy_(value)
