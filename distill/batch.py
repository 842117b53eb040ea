"""What a method is given: the two networks once, before the training, and then one batch a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import torch
from torch import Tensor, nn

from distill.methods import Method
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.options import DistillOptions
from distill.taps import Stages, Taps
from distill.tasks.places import decide, label_rows
from distill.team import Team
from synthesis_kernels.errors import EchosetError

Network = Callable[[Tensor], Tensor]


class Part(nn.Module):
    """What a method trains beside the student: adapters, say, or further networks."""

    stages: Stages | None = None
    """Where in the student this part listens, beside the stages that are paired."""

    def prepare(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """From the student's maps, what the methods that share this part compare."""
        return []

    def keep(self, maps: Sequence[Tensor], embedding: Tensor) -> list[Tensor]:
        """Of the teacher's features, what may be kept beforehand."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pair:
    """The student and the teacher, as parts are built for them."""

    student: Classifier
    teacher: Classifier | None
    options: DistillOptions
    student_stages: Stages
    """The student's stages that are compared with the teacher's; none where nothing compares."""
    teacher_stages: Stages
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
    parts: Mapping[str, Part]
    """What the methods train, by the names of its classes."""
    student: Classifier
    network: Network
    """The student."""
    run_network: Callable[[Network, Tensor], Tensor]
    """Call a network in the precision of the training; logits in float32."""

    images: Tensor
    """(B, C, H, W) in [0, 1]."""
    logits: Tensor
    """(B, K, *places), the student's."""
    answers: Tensor
    """(B, K, *places), the teacher's logits; empty where it is not asked."""
    given_labels: Tensor
    """(B, K, *places), the data's, as probabilities; empty where the teacher's decisions are the
    labels.
    """
    progress: Tensor
    """(), the part of the training that is over."""
    draws: Tensor
    """(B,) in [0, 1), for methods that choose at random."""
    importance: Tensor | None
    """(B,), how much each image counts in the softened answers; None where all count alike."""
    all_logits: list[Tensor]
    """Logits of all networks that learn, the student's first; a method that trains further networks
    adds theirs.
    """
    full_phase: bool
    """Whether `Method.early` of the training is not over yet; afterwards a method may leave out a
    part of its loss.
    """

    student_taps: Taps
    """What was heard of the student's pass, at the stages that are compared."""
    part_taps: Mapping[str, Taps]
    """The student's maps that a part of this name listens to."""
    kept_hints: Sequence[Tensor] = ()
    """What was kept of the teacher's features, where the lesson brought it."""
    raw_teacher_maps: Sequence[Tensor] = ()
    """The teacher's maps, (B, C, H, W) each, as it computed them."""
    teacher_embedding: Tensor = field(default_factory=lambda: torch.empty(0))
    """(B, E), what the teacher's last linear layer read; empty where no method compares it."""
    frozen: Frozen | None = None
    """The teacher, to be asked for other images; its gradients reach the images. None where no
    method needs that.
    """

    known_places: Tensor | None = None
    """(), the labels' sum for each image of the whole batch, where this is a part of one: of label
    maps some know more places than others.
    """

    # What follows is made when a method first asks for it, and shared.

    @cached_property
    def labels(self) -> Tensor:  # (B, K, *places)
        """Probabilities: the data's labels, or the teacher's decisions."""
        if self.given_labels.numel():
            return self.given_labels
        if self.options.label_temperature:
            return (self.answers / self.options.label_temperature).softmax(1)
        return label_rows(decide(self.answers), self.answers.shape[1])

    @cached_property
    def maps(self) -> list[Tensor]:  # of (B, C, H, W), float32
        """The student's maps."""
        return self.student_taps.maps

    @cached_property
    def teacher_maps(self) -> list[Tensor]:  # of (B, C, H, W), float32
        """The teacher's."""
        return [each.float() for each in self.raw_teacher_maps]

    @cached_property
    def prepared(self) -> dict[str, list[Tensor]]:
        """What the parts make of the student's maps."""
        return {name: part.prepare(self.maps) for name, part in self.parts.items()}


def gathered(batch: Batch, team: Team) -> Batch:
    """The whole batch, of which every process of the team has a part."""

    def whole(part: Tensor) -> Tensor:
        return team.gather(part) if part.numel() else part

    logits = whole(batch.logits)
    return replace(
        batch,
        images=whole(batch.images),
        logits=logits,
        answers=whole(batch.answers),
        given_labels=whole(batch.given_labels),
        draws=whole(batch.draws),
        importance=None if batch.importance is None else whole(batch.importance),
        all_logits=[logits],
        student_taps=batch.student_taps.changed(whole),
        part_taps={name: taps.changed(whole) for name, taps in batch.part_taps.items()},
        kept_hints=[whole(each) for each in batch.kept_hints],
        raw_teacher_maps=[whole(each) for each in batch.raw_teacher_maps],
        teacher_embedding=whole(batch.teacher_embedding),
    )


def add_losses(
    methods: Iterable[Method], weights: Mapping[str, float], batch: Batch
) -> Tensor:  # ()
    """What the methods make of a batch, by their weights. A method may be a user's own."""
    terms = []
    for method in methods:
        loss = method.loss(batch)
        if not isinstance(loss, Tensor) or loss.ndim:
            given = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise EchosetError(
                f"loss {method.name} must give one number, a tensor of shape (), got {given}"
            )
        terms.append(weighted(weights[method.name], loss))
    total = add_up(terms)
    if torch.is_grad_enabled() and not total.requires_grad:
        raise EchosetError(
            f"what the losses {', '.join(weights)} give follows from no answer of the student's; "
            "make yours of batch.logits"
        )
    return total


def weighted(weight: float, term: Tensor) -> Tensor:
    """The term times its weight; with a weight of 1 no operation."""
    return term if weight == 1 else weight * term


def add_up(terms: Iterable[Tensor]) -> Tensor:
    """Their sum, from the first to the last."""
    return reduce(torch.add, terms)
