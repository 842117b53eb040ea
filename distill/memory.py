"""What is done where memory does not suffice."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

from distill.learner import Learner

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
        loss, logits, answers = learner(*part, known=known)
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
