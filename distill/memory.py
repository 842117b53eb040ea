"""What is done where memory does not suffice."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from distill.learner import Learner
from synthesis_kernels.backend import say_once

Result = TypeVar("Result")
LACKING = ("out of memory", "can't allocate memory", "not enough memory")
"""In the words of torch, on CUDA and on a CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is what was lacking."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LACKING)


def free_memory(device: torch.device) -> None:
    """Give back what a step that failed has held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Parts:
    """How many equal parts a batch is computed in, one after another: more, once memory has not
    sufficed for one.

    BatchNorm sees a part at a time then, and so does what compares images with one another.
    """

    def __init__(self, option: str) -> None:
        """`option` sets the batch; one that has none stays whole."""
        self.option = option
        self.count = 1

    def run(self, attempt: Callable[[int], Result], batch: int, device: torch.device) -> Result:
        """What an attempt in so many parts gives; in more, where memory does not suffice for it."""
        while True:
            try:
                return attempt(self.count)
            except (MemoryError, RuntimeError) as error:
                self._require_more(error, batch)
            # Only here, where the error, which holds memory, has gone.
            self._split(batch, device)

    def _require_more(self, error: BaseException, batch: int) -> None:
        """Raise what no smaller parts can mend."""
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        splits = self.option and self._more(batch) and not capturing
        if not splits or not is_out_of_memory(error):
            raise error

    def _split(self, batch: int, device: torch.device) -> None:
        """Have at least twice as many, and say so."""
        self.count = self._more(batch) or self.count
        free_memory(device)
        say_once(
            f"out of memory: each batch of {batch} is computed in {self.count} parts, whose "
            "gradients are added up. BatchNorm, and losses that compare images, see a part at a "
            f"time. To have it so from the start: --{self.option} {batch // self.count}"
        )

    def _more(self, batch: int) -> int | None:
        """The next number of parts of two images or more; None where there is none."""
        numbers = range(2 * self.count, batch // 2 + 1)
        return next((number for number in numbers if batch % number == 0), None)


def learn_in_parts(
    learner: Learner,
    lesson: tuple[Tensor, ...],  # as `Learner.forward` takes it
    parts: int,
) -> tuple[Tensor, Tensor, Tensor]:  # (), (B, K, *places) twice
    """What the learner gives for a batch, which goes through it in so many parts, one after
    another. The gradients of all but the last are added up already, and the loss is that one's.
    Parts count by their images, and in a mean over the labels of maps by the places that have one.

    BatchNorm sees a part at a time, and so do losses that compare images with one another.
    """
    batch = len(lesson[0])
    labels = lesson[2]
    known = labels.sum().clamp_min(1) / batch if labels.ndim > 2 else None
    cut = [_cut(tensor, batch, parts) for tensor in lesson]
    answered = []
    for number, part in enumerate(zip(*cut, strict=True), 1):
        loss, logits, answers = learner(*part, known_places=known)
        loss = loss * (len(part[0]) / batch)
        if number < parts:
            loss.backward()
        answered.append((logits.detach(), answers))
    logits, answers = map(torch.cat, zip(*answered, strict=True))
    return loss, logits, answers


def _cut(tensor: Tensor, batch: int, parts: int) -> list[Tensor]:
    """The parts of what there is of each image; anything else goes to each part whole."""
    if tensor.ndim and len(tensor) == batch:
        return list(tensor.tensor_split(parts))
    return [tensor] * parts
