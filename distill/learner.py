"""A student with everything its methods bring along: what they train beside it, and the teacher
they ask.

The methods are files in `distill/methods/`; here each is given the batch, and their terms are added
up. Nothing here knows a method by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from distill.batch import Batch, Pair
from distill.methods import LABELS, Method, Need, find_method, find_methods
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.options import DistillOptions, check_loss
from distill.runtime import Step
from distill.taps import Stages, Taps, find_stages
from distill.tasks.places import decide, label_rows
from distill.views import at_once
from synthesis_kernels.backend import forward_pass
from synthesis_kernels.errors import EchosetError


def full_loss(loss: Mapping[str, float | None]) -> dict[str, float]:
    """The losses asked for, checked, with labels added where nothing else would teach the
    classes.
    """
    check_loss(loss)
    weights = {
        name: find_method(name).weight if weight is None else weight
        for name, weight in loss.items()
    }
    used = {name: weight for name, weight in weights.items() if weight}
    methods = [find_method(name) for name in used]
    crowds = [method.name for method in methods if method.crowd]
    if len(crowds) > 1:
        raise EchosetError(
            f"{' and '.join(crowds)} each replace the student's training by their own; choose one "
            "of them"
        )
    companions = [method.labels for method in methods if method.labels is not None]
    companion = max(companions, default=1.0)
    # A weight of 0 that was named stays 0.
    if companion and LABELS not in loss:
        return {LABELS: companion, **used}
    return used


def asks_teacher(options: DistillOptions) -> bool:
    """Whether anything comes from the teacher: its decisions as labels, or what a loss compares
    with.
    """
    methods = find_methods(full_loss(options.loss))
    return options.labels == "teacher" or any(method.asks_teacher for method in methods)


class Learner(nn.Module):
    """`learner(…)` gives a batch's loss, the student's logits, and the answers they are measured
    by.

    What is trained are this module's parameters; `student` is what is kept. Where further networks
    learn with it, the student is fixed beforehand: nothing chooses among them by any accuracy.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier | None,
        options: DistillOptions,
        precision: torch.dtype = torch.float32,
        seed: int = 0,
        answered: bool = False,
    ) -> None:
        """A teacher may be missing where the answers come with every batch (`answered`)."""
        super().__init__()
        self.student = student
        self.options = options
        self.precision = precision
        self.weights = full_loss(options.loss)
        self.methods = find_methods(self.weights)
        if not answered:
            self._check(teacher)
        self._check_places()
        self._teacher = [teacher]  # in a list, so that it is no submodule and nothing trains it
        self._frozen = [None]
        if self.needs("teacher") and teacher is not None:
            self._frozen = [Frozen(teacher, precision)]
        self.attacks_end = min((method.early for method in self.methods), default=1.0)
        self.attacks = self.attacks_end < 1  # switched off by the loop at `attacks_end`
        self.network: Callable[[Tensor], Tensor] = student.__call__  # or a compiled form of it
        self.on_features = any(method.on_features for method in self.methods)
        self.student_stages: Stages | None = None
        self.teacher_stages: Stages | None = None
        if self.on_features:
            self._pair_stages(student, teacher)
        pair = Pair(student, teacher, options, self.student_stages, self.teacher_stages, seed)
        classes = {method.part.__name__: method.part for method in self.methods if method.part}
        # By their names, so that what is drawn depends on nothing else.
        self.parts = nn.ModuleDict({name: classes[name](pair) for name in sorted(classes)})

    def _check(self, teacher: Classifier | None) -> None:
        if teacher is None and asks_teacher(self.options):
            asking = sorted(method.name for method in self.methods if method.asks_teacher)
            raise EchosetError(
                f"loss {', '.join(asking) or LABELS} needs a teacher; without one use labels='data'"
            )

    def _check_places(self) -> None:
        """Refuse a method that has no meaning where there are several decisions an image."""
        places = self.student.answer_shape[1:]
        unfit = [method.name for method in self.methods if method.one_decision]
        if places and unfit:
            raise EchosetError(
                f"loss {', '.join(unfit)} is for one decision an image, and "
                f"{self.student.spec.task} has {' × '.join(map(str, places))}; leave it out"
            )

    def _pair_stages(self, student: Classifier, teacher: Classifier) -> None:
        """Find what is compared: as many maps of one as of the other, from the last one backwards,
        or embeddings alone.
        """
        maps = self.needs("maps")
        options = self.options
        own = find_stages(student, options.student_layers, maps)
        given = find_stages(teacher, options.teacher_layers, maps)
        if maps:
            named = options.student_layers and options.teacher_layers
            if named and len(own.layers) != len(given.layers):
                raise EchosetError(
                    f"{len(own.layers)} student_layers and {len(given.layers)} teacher_layers make "
                    "no pairs"
                )
            count = min(len(own.layers), len(given.layers))
            for method in self.methods:
                if method.pairs > count:
                    raise EchosetError(
                        f"{method.name} compares {method.pairs} stages with one another, and only "
                        "one pair was found; name more layers"
                    )
            own = _last(own, count)
            given = _last(given, count)
        self.student_stages = own
        self.teacher_stages = given

    def needs(self, need: Need) -> bool:
        """Whether a method needs this."""
        return any(need in method.needs for method in self.methods)

    @property
    def takes_answers(self) -> bool:
        """Whether the teacher's answers come with the lesson; methods on features ask it
        themselves, unless what they compare is kept.
        """
        return not self.on_features and asks_teacher(self.options)

    @property
    def takes_hints(self) -> bool:
        """Whether the teacher's features can come with the lesson, and its answers with them: all
        methods that look at them can keep them.
        """
        return self._keeper is not None

    @property
    def _keeper(self) -> Method | None:
        """The one method on features, where its part says what to keep of them."""
        looking = [method for method in self.methods if method.on_features]
        return looking[0] if len(looking) == 1 and looking[0].keeps else None

    @torch.no_grad()
    def ask_for_hints(
        self, images: Tensor
    ) -> list[Tensor]:  # (B, C, H, W) -> (B, K), then (B, C, h, w) each
        """The teacher's answers and, in bfloat16, what is kept of its features."""
        part = self.parts[self._keeper.part.__name__]
        asked = (self._ask_teacher(each) for each in images.split(at_once(images.shape[-1])))
        small = (
            [answers, *(each.bfloat16() for each in part.keep(*features))]
            for answers, *features in asked
        )
        return [torch.cat(each) for each in zip(*small, strict=True)]

    def compare_hints(self, looks: Taps, hints: Sequence[Tensor]) -> Tensor:  # ()
        """The term of the method whose features are kept: the student's, in the pass `looks` saw,
        against the teacher's.
        """
        return self._keeper.loss(Batch(self.options, self.parts, looks, kept=hints))

    def check_step(self, step: Step) -> None:
        """Refuse to compile a student that the losses look into."""
        listening = any(part.stages for part in self.parts.values())
        if step == "compiled" and (self.on_features or listening):
            raise EchosetError(
                f"step 'compiled' can't be had with the losses {', '.join(self.weights)}; use "
                "--step eager"
            )

    @property
    def draws(self) -> bool:
        """Whether a method chooses at random."""
        return self.needs("draws")

    def forward(
        self,
        images: Tensor,  # (B, C, H, W) in [0, 1], as the student shall see them
        # (B, K, *places) the teacher's logits; (0,) where it is asked here, or there is none
        answers: Tensor,
        # (B, K, *places) the data's labels as probabilities; (0,) where the teacher's decisions
        # are the labels
        labels: Tensor,
        share: Tensor,  # () part of the training that is over
        draws: Tensor,  # (B,) in [0, 1), for methods that choose at random
        # (B, C, h, w) the teacher's, where they and the answers come with the lesson
        *hints: Tensor,
        # (B,) how much each image counts; None where all count alike
        importance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # (), (B, K, *places) twice
        looks = Taps(self.student, self.student_stages or NOWHERE)
        taps = {
            name: Taps(self.student, part.stages)
            for name, part in self.parts.items()
            if part.stages
        }
        with ExitStack() as listening:
            for each in (looks, *taps.values()):
                listening.enter_context(each)
            logits = self._answer(self.network, images)
        batch = Batch(
            self.options,
            self.parts,
            looks,
            importance=importance,
            kept=hints,
            images=images,
            logits=logits,
            share=share,
            draws=draws,
            everyone=[logits],
            taps=taps,
            student=self.student,
            frozen=self._frozen[0],
            network=self.network,
            answer=self._answer,
            early=self.attacks,
        )
        if self.on_features and not hints:
            answers, maps, embedding = self._ask_teacher(images)
            batch = replace(batch, teacher_maps=maps, teacher_embedding=embedding, maps=looks.maps)
            prepared = {name: part.prepare(batch.maps) for name, part in self.parts.items()}
            batch = replace(batch, prepared=prepared)
        labels = labels if labels.numel() else self._decisions(answers)
        batch = replace(batch, answers=answers, labels=labels)
        terms = {method.name: method.loss(batch) for method in self.methods}
        loss = sum(self.weights[name] * term for name, term in terms.items())
        # Labels as logits, where there are no answers: what follows compares decisions and
        # divergences.
        return loss, logits, answers if answers.numel() else labels.clamp_min(1e-9).log()

    def _answer(
        self, network: Callable[[Tensor], Tensor], images: Tensor
    ) -> Tensor:  # (B, C, H, W) -> (B, K, *places) float32
        with forward_pass(images.device, self.precision):
            return network(images).float()

    def _decisions(self, answers: Tensor) -> Tensor:  # (B, K, *places), the same
        if self.options.label_temperature:
            return (answers / self.options.label_temperature).softmax(1)
        return label_rows(decide(answers), answers.shape[1])

    def _ask_teacher(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """The teacher's answers, its maps and its embedding."""
        teacher = self._teacher[0]
        with torch.no_grad(), Taps(teacher, self.teacher_stages) as taps:
            answers = self._answer(teacher, images)
        return answers, taps.maps, taps.embedding


NOWHERE = Stages((), (), (), None)
"""Where methods listen that look at logits alone."""


def _last(stages: Stages, count: int) -> Stages:
    kept = slice(len(stages.layers) - count, None)
    return Stages(stages.layers[kept], stages.channels[kept], stages.sides[kept], stages.head)
