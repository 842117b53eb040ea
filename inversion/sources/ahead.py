"""Blocks of a collection that other processes of torchrun make ahead, for process 0 to choose from.

Which images are kept depends on all that came before; which images a source gives, and what the
teacher answers, does not. So process 0 chooses alone, block by block, as a process alone does, and
the others draw and ask for the blocks to come. Where answers are too
large to carry, the others only draw.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import torch
from torch import Tensor

from distill.claims import Claims
from distill.gathering import POLL, drop, fetch, put
from inversion.sources.phases import Phase
from inversion.sources.stock import Stock

Block = tuple[Tensor, Tensor]
"""Images (B, C, H, W) uint8, and the teacher's answers (B, K, *places) float32."""
Make = Callable[[Phase, int, Stock], Block]
"""Makes a block of a phase, whose images may follow from those held."""
Answer = Callable[[Tensor, Stock], Tensor]
"""The teacher's answers to a block's images."""
CARRIED = 64 * 2**20
"""Most bytes of a block's answers that are carried. The blocks ahead lie in torchrun's memory."""


class Ahead:
    """What process 0 makes blocks by: it fetches those that others have made."""

    def __init__(self, claims: Claims, answer: Answer) -> None:
        self._claims = claims
        self._answer = answer

    def __call__(self, phase: Phase, number: int, stock: Stock) -> Block:
        """A block, from whoever has claimed it."""
        if not phase.drawn:
            self._claims.write("at", "")
            return self._make(phase, number, stock)
        name = f"{phase.name}/{number}"
        self._claims.write("at", name)
        is_own = self._claims.take(name)
        while is_own is False:
            time.sleep(POLL)
            is_own = self._claims.take(name)
        content = None if is_own else fetch(self._claims, name)
        if content is None:  # nobody's, or fetched before by a process that was killed
            return self._make(phase, number, stock)
        images, logits = torch.load(io.BytesIO(content), weights_only=True)
        images = images.to(stock.images.device)
        if logits is None:
            return images, self._answer(images, stock)
        return images, logits.to(images.device)

    def _make(self, phase: Phase, number: int, stock: Stock) -> Block:
        images = phase.make(number, stock)
        return images, self._answer(images, stock)


def make_ahead(
    claims: Claims, world: int, phases: list[Phase], answer: Answer, stock: Stock
) -> None:
    """Make blocks that process 0 will come to, until it needs no more."""
    drawn = {phase.name: phase for phase in phases if phase.drawn}
    made = []
    while not claims.read("over"):
        name = _claim_next(claims, world, drawn, stock)
        if name:
            phase, _, number = name.rpartition("/")
            images = drawn[phase].make(int(number), stock)
            put(claims, name, _packed(images, answer, stock))
            claims.finish(name)
            made.append(name)
            continue
        claims.require_leader()
        time.sleep(POLL)
    for name in made:
        drop(claims, name)


def _packed(images: Tensor, answer: Answer, stock: Stock) -> bytes:
    """A block as it is carried: without answers where they are too large."""
    is_carried = len(images) * stock.logits[:1].nbytes <= CARRIED
    logits = answer(images, stock).cpu() if is_carried else None
    buffer = io.BytesIO()
    torch.save((images.cpu(), logits), buffer)
    return buffer.getvalue()


def _claim_next(claims: Claims, world: int, drawn: dict[str, Phase], stock: Stock) -> str | None:
    """The next block that nobody has claimed; of a few, as process 0 may soon have enough."""
    phase, _, number = claims.read("at").rpartition("/")
    if phase not in drawn:
        return None
    first = int(number) + 1
    last = min(first + world, drawn[phase].limit(stock))
    for ahead in range(first, last):
        name = f"{phase}/{ahead}"
        if claims.take(name):
            return name
    return None
