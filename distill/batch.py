"""What a method is given: the two networks once, before the training, and then one batch a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.options import DistillOptions
from distill.taps import Stages, Taps


class Part(nn.Module):
    """What a method trains beside the student: adapters, say, or further networks."""

    stages: Stages | None = None
    """Where in the student this part listens, beside the stages that are paired."""

    def prepare(self, maps: list[Tensor]) -> list[Tensor]:
        """From the student's maps, what the methods that share this part compare."""
        return []

    def keep(self, maps: list[Tensor], embedding: Tensor) -> list[Tensor]:
        """Of the teacher's features, what may be kept beforehand."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pair:
    """The student and the teacher, as parts are built for them."""

    student: Classifier
    teacher: Classifier | None
    options: DistillOptions
    student_stages: Stages | None
    """The student's stages that are compared with the teacher's; None where nothing compares."""
    teacher_stages: Stages | None
    """As many of the teacher's."""
    seed: int

    @property
    def channels(self) -> list[tuple[int, int]]:
        """Channels of the student's map and of the teacher's, stage by stage."""
        both = (self.student_stages.channels, self.teacher_stages.channels)
        return list(zip(*both, strict=True))


@dataclass(frozen=True)
class Batch:
    """One batch, as every method sees it."""

    options: DistillOptions
    parts: nn.ModuleDict
    """What the methods train, by the names of its classes."""
    looks: Taps
    """The student's pass; what it gives is cast to float32 afresh each time it is asked."""
    kept: Sequence[Tensor] = ()
    """What was kept of the teacher's features, where the lesson brought it."""
    maps: Sequence[Tensor] = ()
    """The student's maps, (B, C, H, W) each in float32, shared by the methods that compare them."""
    prepared: dict[str, list[Tensor]] = field(default_factory=dict)
    """What the parts made of the student's maps."""
    teacher_maps: Sequence[Tensor] = ()
    """The teacher's."""
    teacher_embedding: Tensor | None = None
    """(B, E), what the teacher's last linear layer read."""
    images: Tensor | None = None
    """(B, C, H, W) in [0, 1]."""
    logits: Tensor | None = None
    """(B, K), the student's."""
    answers: Tensor | None = None
    """(B, K), the teacher's logits; empty where it is not asked."""
    labels: Tensor | None = None
    """(B, K), probabilities."""
    share: Tensor | None = None
    """(), the part of the training that is over."""
    draws: Tensor | None = None
    """(B,) in [0, 1), for methods that choose at random."""
    everyone: list[Tensor] = field(default_factory=list)
    """Logits of all networks that learn, the student's first; a method that trains further networks
    adds theirs.
    """
    taps: Mapping[str, Taps] = field(default_factory=dict)
    """The student's maps that a part of this name listens to."""
    student: Classifier | None = None
    frozen: Frozen | None = None
    """The teacher, to be asked for other images; its gradients reach the images."""
    network: Callable[[Tensor], Tensor] | None = None
    """The student, or its compiled form."""
    answer: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] | None = None
    """Call a network in the precision of the training; logits in float32."""
    early: bool = True
    """Whether methods that leave something out late in the training still do all."""
