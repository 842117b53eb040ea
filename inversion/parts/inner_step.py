"""One inner step, of one generator or of several abreast: all images go through one pass of the
teacher, and everything else is each generator's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.memory import Parts
from distill.team import Turn
from distill.team_layers import pool
from synthesis_kernels.step import Captured

if TYPE_CHECKING:
    from inversion.parts.inner import InnerLoop

Terms = list[tuple[Tensor, Tensor]]
"""Parts of the loss, and the loss's gradient by each: what they weigh in it."""


@dataclass(frozen=True)
class Request:
    """What a step is asked for."""

    wanted: Tensor  # (B,) the class each image is made for
    targets: Tensor  # (B, *places) the decisions asked of the teacher
    view: Tensor  # () number of the view
    held: Tensor  # (K,) images of each class in the buffer
    adversarial: bool
    """Whether the adversary counts."""

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a captured step is given."""
        return self.wanted, self.targets, self.view, self.held


@dataclass(frozen=True)
class InnerResult:
    """What a step found, before its update. A captured step's next run overwrites it."""

    bn: Tensor  # ()
    class_loss: Tensor  # (B / team,)
    divergence: Tensor  # (B / team,) KL(p_T ‖ p_S) where teacher and adversary decide alike, else 0
    likeness: Tensor  # ()
    moments: Tensor  # (2, ΣC)
    own: tuple[Tensor, ...] = ()  # () each, the terms that a user brought along

    @property
    def adversarial_loss(self) -> Tensor:  # (B / team,)
        """L_adv, the adversary's part of the loss."""
        return -self.divergence

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its fields end to end, as a captured step has them."""
        return (
            self.bn,
            self.class_loss,
            self.divergence,
            self.likeness,
            self.moments,
            *self.own,
        )

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> InnerResult:
        """The result that has these `tensors`."""
        bn, class_loss, divergence, likeness, moments, *own = tensors
        return cls(bn, class_loss, divergence, likeness, moments, tuple(own))

    @property
    def mean(self) -> Tensor:  # (ΣC,)
        """This batch's, at all BatchNorm layers."""
        return self.moments[0]

    @property
    def variance(self) -> Tensor:  # (ΣC,)
        """This batch's, at all BatchNorm layers."""
        return self.moments[1]


class InnerStep:
    """A step of these loops, which are made for one teacher by the same options: eager, or captured
    as one graph.
    """

    def __init__(self, loops: Sequence[InnerLoop]) -> None:
        first = loops[0]
        self.loops = loops
        self.teacher = first.teacher
        self.step = first.step
        self.shares_input = first.shares_input
        self.parts = Parts("synthesis.batch" if first.team.world == 1 else "")
        self._captured = Captured(self._flat, self._tensors, required=self.step == "graph")

    def __call__(self, requests: Sequence[Request]) -> list[InnerResult]:
        """One update of each loop."""
        # The first calls go without adversary or average. They are few: only the form that stays is
        # captured.
        pairs = zip(self.loops, requests, strict=True)
        settled = all(loop.is_settled(request.adversarial) for loop, request in pairs)
        if self.step == "eager" or not settled:
            found = self._update(requests)
        else:
            given = chain.from_iterable(request.tensors for request in requests)
            found = self._captured(*given)
        return [InnerResult.of(part) for part in _parts(found, len(requests))]

    def _flat(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`_update` of requests end to end, all of which are settled."""
        requests = []
        for wanted, targets, view, held in _parts(tensors, len(self.loops)):
            requests.append(Request(wanted, targets, view, held, adversarial=True))
        return self._update(requests)

    def _update(self, requests: Sequence[Request]) -> tuple[Tensor, ...]:
        """The fields of every loop's result, end to end."""
        count = len(requests[0].wanted)
        attempt = partial(self._follow_in_turns, requests)
        results = self.parts.run(attempt, count, self.loops[0].noise.device)
        for loop in self.loops:
            loop.learn()
        return tuple(value.detach() for value in results)

    def _follow_in_turns(self, requests: Sequence[Request], count: int) -> list[Tensor]:
        """The gradients of so many parts of the batches, added up."""
        for loop in self.loops:
            loop.optimiser.zero_grad(set_to_none=True)
        if count == 1:
            return self._follow(requests)
        teams = [loop.team for loop in self.loops]
        found = []
        try:
            for number in range(count):
                for loop in self.loops:
                    loop.join(Turn(number, count))
                found.append([value.detach() for value in self._follow(requests)])
        finally:
            for loop, team in zip(self.loops, teams, strict=True):
                loop.join(team)
        return [_whole(values) for values in zip(*found, strict=True)]

    def _follow(self, requests: Sequence[Request]) -> list[Tensor]:
        """The gradients of a step, and its results."""
        shown = [loop.show(each) for loop, each in zip(self.loops, requests, strict=True)]
        answers = self._ask([seen for _, seen in shown])
        terms: Terms = []
        results: list[Tensor] = []
        for loop, request, pair, answer in zip(self.loops, requests, shown, answers, strict=True):
            terms_of_loop, result = loop.judge(request, *pair, *answer)
            terms += terms_of_loop
            results += result.tensors
        if terms:
            parts, weights = zip(*terms, strict=True)
            torch.autograd.backward(parts, weights)
        return results

    # of (B, C, H, W) -> of (B, K, *places), (2, ΣC)
    def _ask(self, seen: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The teacher's logits and moments for every batch, in one pass."""
        prepared = self.shares_input
        if len(seen) == 1:
            return [self.teacher.with_moments(seen[0], prepared=prepared)]
        together = torch.cat(seen)
        logits, moments = self.teacher.with_moments(together, len(seen), prepared)
        return list(zip(logits.split(len(seen[0])), moments.unbind(), strict=True))

    def _tensors(self) -> list[Tensor]:
        """What a step changes."""
        return [tensor for loop in self.loops for tensor in loop._tensors()]


def _whole(values: Sequence[Tensor]) -> Tensor:
    """A field of a batch's result, of those of its parts."""
    kind = values[0].ndim
    if kind == 0:
        return torch.stack(list(values)).mean()
    return torch.cat(list(values)) if kind == 1 else pool(torch.stack(list(values)))


def _parts(tensors: Sequence[Tensor], count: int) -> list[Sequence[Tensor]]:
    """So many equal parts, one after the other."""
    size = len(tensors) // count
    return [tensors[size * part : size * (part + 1)] for part in range(count)]
