"""Images a teacher has decided on, kept while their class has room; all of it stays on the
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distill.models import Classifier
from distill.tasks import USUAL, Task, find_task
from distill.tasks.places import decide, require_answers_fit
from inversion.options import CollectOptions

STORED = ("images", "logits", "round", "held")


class Stock:
    """Slots for so many images of each class, or of all classes together where it need not be
    balanced.

    The first images to come are those that are kept, in their order. Which class an image counts
    for is the task's to say; `places` is where in an image there is a decision.
    """

    def __init__(
        self,
        quotas: Sequence[int],
        shape: tuple[int, int, int],
        balanced: bool,
        device: torch.device,
        task: Task | None = None,
        places: tuple[int, ...] = (),
    ) -> None:
        self.task = task or find_task(USUAL)
        self.classes = len(quotas)
        self.total = sum(quotas)
        require_answers_fit(self.total, (self.classes, *places), "collect fewer (--images)")
        self.balanced = balanced
        room = list(quotas) if balanced else [self.total]
        self.quotas = torch.tensor(room, device=device)
        spare = self.total + 1  # one slot more: what is turned away is written there
        self.images = torch.zeros(spare, *shape, dtype=torch.uint8, device=device)
        self.logits = torch.zeros(spare, self.classes, *places, device=device)
        self.round = torch.zeros(spare, dtype=torch.int32, device=device)
        self.held = torch.zeros_like(self.quotas)

    def groups(self, logits: Tensor) -> Tensor:  # (B, K, *places) -> (B,)
        """The class that each image counts for."""
        return self.task.group(decide(logits), self.classes)

    def offer(
        self,
        images: Tensor,  # (B, C, H, W) uint8
        logits: Tensor,  # (B, K, *places) float32
        allowed: Tensor,  # (B,) bool
        number: int,
    ) -> Tensor:  # (K,) images taken
        """Take what is allowed and fits; `number` says in which round they came."""
        labels = self.groups(logits)
        shelf = labels if self.balanced else torch.zeros_like(labels)
        shelves = torch.arange(len(self.quotas), device=labels.device)
        member = (shelf[:, None] == shelves) & allowed[:, None]
        place = (self.held + member.cumsum(0)).gather(1, shelf[:, None])[:, 0] - 1
        welcome = allowed & (place < self.quotas[shelf])
        first = self.quotas.cumsum(0) - self.quotas
        slot = torch.where(welcome, first[shelf] + place, self.total)
        self.images[slot] = images
        self.logits[slot] = logits
        self.round[slot] = number
        # Many were turned away to one place, and which of them stays there depends on the threads;
        # the state must not.
        self.images[-1] = 0
        self.logits[-1] = 0
        self.held = torch.minimum(self.held + member.sum(0), self.quotas)
        taken = torch.zeros(self.classes, dtype=torch.long, device=labels.device)
        return taken.index_add_(0, labels, welcome.long())

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
        shelf = self._shelves()
        place = slots - (self.quotas.cumsum(0) - self.quotas)[shelf]
        filled = slots[place < self.held[shelf]]
        return filled[(place[filled] * len(self.quotas) + shelf[filled]).argsort()]

    def lacking(self, slots: Tensor) -> Tensor:  # (n,) -> (n,)
        """Images that the class lacks which each slot is kept for."""
        return self.missing()[self._shelves()[slots]]

    def _shelves(self) -> Tensor:  # (total,)
        """What each slot is kept for."""
        shelves = torch.arange(len(self.quotas), device=self.quotas.device)
        return torch.repeat_interleave(shelves, self.quotas)

    def state_dict(self) -> dict[str, Any]:
        """Everything it holds."""
        return {name: getattr(self, name) for name in STORED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name, value in state.items():
            getattr(self, name).copy_(value)


def quotas_of(options: CollectOptions, classes: int) -> list[int]:
    """Images of each class: image i of the set is of class i mod K."""
    return [len(range(label, options.images, classes)) for label in range(classes)]


def empty_stock(teacher: Classifier, options: CollectOptions, device: torch.device) -> Stock:
    """The stock that these options ask for."""
    spec = teacher.spec
    return Stock(
        quotas_of(options, spec.classes),
        spec.shape,
        options.balanced,
        device,
        teacher.task,
        teacher.answer_shape[1:],
    )
