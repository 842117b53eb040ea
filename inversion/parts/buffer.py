"""The replay buffer: every class has its own slots, so the set can't leave balance; all of it lives
on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distill.tasks import USUAL, Task, find_task
from distill.tasks.places import decide, require_answers_fit
from synthesis_kernels.priority import draw

STORED = (
    "images",
    "groups",
    "logits",
    "priority",
    "weight",
    "disagreement",
    "trend",
    "visits",
    "round",
    "filled",
    "answers",
    "seen",
)
"""The tensors that are a buffer's state. Its hints are not: they can be asked for again."""


FEWER = "make fewer images (with keep_all fewer calls), or smaller --synthesis.shard_images"
"""What helps where the answers take too much memory."""


class ReplayBuffer:
    """Σ quotas slots of uint8 images with the teacher's answers and what their visits left:
    priority δ and last importance weight, last disagreement, its change, and their number.

    A new image goes to an empty slot of its class; where there is none, to the slot with the lowest
    priority. Which of several candidates goes in is settled by their rank (φ). A part of the slots
    is held out: the adversarial student never trains on them, and its agreement there says whether
    it still learns. No operation here waits for the device, but for `held` and `full`.

    `answers` has room for what the teacher says to `views` views of each image that is not held
    out, and `seen`, with `keep_views`, for these views themselves; `newest` names the slots that
    the latest `add` wrote to (the spare one past the last for what it turned away). `hints` has
    room for what its features say to these views, where `hints` gives their shapes.
    """

    def __init__(
        self,
        quotas: list[int],
        image_shape: tuple[int, int, int],
        held_out: float = 0.1,
        device: torch.device | str = "cpu",
        views: int = 0,
        keep_views: bool = False,
        hints: Sequence[Sequence[int]] = (),
        task: Task | None = None,
        places: tuple[int, ...] = (),
    ) -> None:
        self.task = task or find_task(USUAL)
        self.capacity = sum(quotas)
        self.classes = len(quotas)
        require_answers_fit(self.capacity, (self.classes, *places), FEWER, 1 + views)
        self.quotas = torch.tensor(quotas, device=device)
        spare = self.capacity + 1  # one slot more: what is turned away is written there
        self.images = torch.zeros(spare, *image_shape, dtype=torch.uint8, device=device)
        self.groups = torch.repeat_interleave(torch.arange(self.classes), torch.tensor(quotas)).to(
            device
        )
        self.groups = torch.cat([self.groups, self.groups.new_zeros(1)])
        self.logits = torch.zeros(spare, self.classes, *places, device=device)
        self.priority = torch.zeros(spare, device=device)
        self.weight = torch.ones(spare, device=device)
        self.disagreement = torch.zeros(spare, device=device)
        self.trend = torch.zeros(spare, device=device)
        self.visits = torch.zeros(spare, device=device)
        self.round = torch.zeros(spare, dtype=torch.int32, device=device)
        self.filled = torch.zeros(spare, dtype=torch.bool, device=device)
        self.answers = torch.zeros(spare, views, self.classes, *places, device=device)
        self.seen = torch.zeros(
            spare, views if keep_views else 0, *image_shape, dtype=torch.uint8, device=device
        )
        self.hints = [
            torch.zeros(spare, views, *shape, dtype=torch.bfloat16, device=device)
            for shape in hints
        ]
        self.newest = torch.empty(0, dtype=torch.int64, device=device)
        self._held: int | None = None

        # slots[c, i] is class c's i-th slot, or the spare one past its quota.
        self._slots = torch.full((self.classes, max(quotas)), self.capacity, device=device)
        self.is_held_out = torch.zeros(spare, dtype=torch.bool, device=device)
        self._number_slots(quotas, held_out)
        self._to_ask = torch.where(self.is_held_out)[0]
        if not len(self._to_ask):
            self._to_ask = torch.arange(self.capacity, device=device)

    def _number_slots(self, quotas: list[int], held_out: float) -> None:
        """Give each class its slots, and say which of them are held out: spread, and not the first
        one, so that there is something to train on early.
        """
        first = 0
        for label, quota in enumerate(quotas):
            last = first + quota
            self._slots[label, :quota] = torch.arange(first, last)
            place = torch.arange(quota)
            if 1 < quota < 1 / max(held_out, 1e-9):
                # Too small for one of its own: counted on from the class before.
                place = place + first
            before = (place * held_out).floor()
            self.is_held_out[first:last] = ((place + 1) * held_out).floor() > before
            first = last

    def to_ask(self) -> Tensor:
        """Slots whose agreement is measured: those held out, or all where none is."""
        return self._to_ask

    def to_mix(self, random: torch.Generator) -> Tensor:  # (N, C, H, W) uint8
        """The images, with others in the place of those held out and in empty slots: whichever a
        view is mixed with, the student may see it.
        """
        may = self.filled & ~self.is_held_out
        # Where nothing may be mixed, there is a draw all the same.
        others = draw(may.float().clamp_min(1e-30), len(may), random)
        own = torch.arange(len(may), device=may.device)
        return self.images[torch.where(may, own, others)]

    def counts(self) -> Tensor:  # (K,)
        """Images held of each class."""
        return torch.zeros_like(self.quotas).index_add_(
            0, self.groups[:-1], self.filled[:-1].long()
        )

    @property
    def held(self) -> int:
        """Images there are. The device is asked, and waited for, unless `note` has told since the
        last `add`.
        """
        if self._held is None:
            self._held = int(self.filled[:-1].sum())
        return self._held

    def note(self, held: int | None) -> None:
        """Learn how many images there are from whoever asked; None: it has changed since."""
        self._held = held

    @property
    def full(self) -> bool:
        """Whether no slot is empty."""
        return self.held == self.capacity

    def add(
        self,
        images: Tensor,  # (B, C, H, W) uint8
        logits: Tensor,  # (B, K, *places) float32, the teacher's for exactly these images
        rank: Tensor,  # (B,) higher enters first
        call: int | Tensor,
        refresh: float,
        half_life: float = 0.0,
    ) -> Tensor:  # () images taken in
        """Offer new images; each class takes what it lacks, and replaces at most `refresh` of its
        quota.

        Those of lowest priority go, counted half for every `half_life` calls of age (0: age has no
        say).
        """
        groups = self.task.group(decide(logits), self.classes)
        by_rank = rank.argsort(descending=True, stable=True)
        order = by_rank[groups[by_rank].argsort(stable=True)]
        sorted_groups = groups[order]
        starts = torch.searchsorted(sorted_groups, torch.arange(self.classes, device=groups.device))
        # 0 for the best of its class.
        place = torch.arange(len(groups), device=groups.device) - starts[sorted_groups]

        # Each class's slots, empty ones first, then by rising priority; slots past the quota last.
        worth = torch.where(self.filled, self._worth(call, half_life), -1.0)
        worth[-1:] = torch.inf
        slots = self._slots.gather(1, worth[self._slots].argsort(dim=1, stable=True))
        lacking = self.quotas - self.counts()
        replaced = (refresh * self.quotas.double() - 1e-9).ceil().long()
        allowed = torch.minimum(lacking + replaced, self.quotas)
        welcome = place < allowed[sorted_groups]
        slot = slots[sorted_groups, place.clamp_max(slots.shape[1] - 1)]
        target = torch.where(welcome, slot, self.capacity)

        self._put(target, images[order], logits[order], call)
        return welcome.sum()

    def _worth(self, call: int | Tensor, half_life: float) -> Tensor:
        """By what a stored image is kept: its priority, half for every half-life of its age."""
        priority = self.priority.clamp_min(0)
        if not half_life:
            return priority
        return priority * 0.5 ** ((call - self.round) / half_life)

    def _put(self, target: Tensor, images: Tensor, logits: Tensor, call: int | Tensor) -> None:
        """Write new images into slots; the spare one stays empty."""
        self.newest = target
        self._held = None
        # Unseen images are drawn soon (Schaul et al.).
        highest = self.priority[:-1].amax().clamp_min(1.0)
        self.images[target] = images
        self.logits[target] = logits
        self.priority[target] = highest
        self.disagreement[target] = highest
        # A number assigned to places chosen by a tensor would be sent to the device, and waited
        # for.
        for stored, value in (
            (self.weight, 1),
            (self.trend, 0),
            (self.visits, 0),
            (self.round, call),
            (self.filled, True),
        ):
            stored.index_fill_(0, target, value)
        self.filled[-1:] = False
        # Many were turned away to one place, and which of them stays there depends on the threads;
        # the state must not.
        self.images[-1] = 0
        self.logits[-1] = 0

    def take_over(self, other: ReplayBuffer) -> None:
        """Replace everything by another buffer's content and leave that one empty."""
        for own, given in zip(self.tensors(), other.tensors(), strict=True):
            own.copy_(given)
        other.filled.zero_()
        self._held = other._held
        other._held = 0

    def tensors(self) -> list[Tensor]:
        """Every tensor that new images change in place."""
        return [*(getattr(self, name) for name in STORED), *self.hints]

    def state_dict(self) -> dict[str, Any]:
        """Every stored tensor."""
        return {name: getattr(self, name) for name in STORED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; hints are left to whoever can ask for them."""
        for name in STORED:
            getattr(self, name).copy_(state[name])
        self._held = None


class GrowingPool(ReplayBuffer):
    """Room for every image that is made: nothing is refused or replaced, and classes come as they
    come (Fast-Datafree).
    """

    MOST_ASKED = 500
    """Held-out images asked after each call, spread evenly over those there are."""

    def __init__(
        self,
        quotas: list[int],
        image_shape: tuple[int, int, int],
        held_out: float = 0.1,
        device: torch.device | str = "cpu",
        views: int = 0,
        keep_views: bool = False,
        hints: Sequence[Sequence[int]] = (),
        task: Task | None = None,
        places: tuple[int, ...] = (),
    ) -> None:
        room = [sum(quotas)] + [0] * (len(quotas) - 1)
        extras = (views, keep_views, hints, task, places)
        super().__init__(room, image_shape, held_out, device, *extras)
        self.quotas = torch.tensor(quotas, device=device)
        del self._slots  # it replaces nothing

    def to_ask(self) -> Tensor:
        held = self.filled[self._to_ask].sum()  # images arrive in the order of their slots
        places = torch.linspace(0, 1, min(len(self._to_ask), self.MOST_ASKED), device=held.device)
        return self._to_ask[(places * held).long().minimum(held - 1).clamp_min(0)]

    def add(
        self,
        images: Tensor,
        logits: Tensor,
        rank: Tensor,
        call: int | Tensor,
        refresh: float,
        half_life: float = 0.0,
    ) -> Tensor:
        """Keep all, as long as there is room."""
        target = (self.filled.sum() + torch.arange(len(images), device=images.device)).clamp_max(
            self.capacity
        )
        self.groups[target] = self.task.group(decide(logits), self.classes)
        self._put(target, images, logits, call)
        return (target < self.capacity).sum()
