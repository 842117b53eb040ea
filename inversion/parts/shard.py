"""A buffer's images as a shard's tensors."""

from __future__ import annotations

from torch import Tensor

from distill.models import Classifier
from distill.sets.keeping import logits_to_keep
from distill.tasks.places import decide
from inversion.jobs import ShardJob
from inversion.parts.buffer import ReplayBuffer


def buffer_tensors(buffer: ReplayBuffer, teacher: Classifier, job: ShardJob) -> dict[str, Tensor]:
    """What a shard holds of every filled slot."""
    keep = buffer.filled
    tensors = {name: getattr(buffer, name)[keep] for name in ("images", "priority", "round")}
    logits = buffer.logits[keep]
    tensors["labels"] = decide(logits).to(buffer.task.label_dtype)
    tensors["logits"] = logits_to_keep(teacher, tensors["images"], logits, job.images)
    return tensors
