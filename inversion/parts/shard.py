"""A buffer's images as a shard's tensors."""

from __future__ import annotations

from torch import Tensor

from distill.tasks.places import decide
from inversion.parts.buffer import ReplayBuffer

LARGEST = 65504
"""float16 ends there; a logit beyond it would become infinite."""


def buffer_tensors(buffer: ReplayBuffer) -> dict[str, Tensor]:
    """What a shard holds of every filled slot."""
    keep = buffer.filled
    tensors = {name: getattr(buffer, name)[keep] for name in ("images", "priority", "round")}
    logits = buffer.logits[keep]
    tensors["labels"] = decide(logits).to(buffer.task.label_dtype)
    tensors["logits"] = logits.clamp(-LARGEST, LARGEST)
    return tensors
