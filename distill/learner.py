"""A student with everything its methods bring along: what they train beside it, and the teacher
they ask.

The methods are files in `distill/methods/`; here each is given the batch, and their terms are added
up. Nothing here knows a method by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.batch import Batch, Network, Pair, Part, add_losses, gathered
from distill.losses import Losses, need_teacher, weigh_losses
from distill.methods import LABELS, Method, Need
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.options import DistillOptions
from distill.shadows import Shadows
from distill.taps import Stages, Taps, find_stages
from distill.tasks.places import label_logits
from distill.team import SOLO, Team
from distill.views import at_once
from synthesis_kernels.backend import forward_pass
from synthesis_kernels.errors import EchosetError

NOWHERE = Stages((), (), (), None)
"""Where methods listen that look at logits alone."""


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
        losses: Losses | None = None,
    ) -> None:
        """A teacher may be missing where the answers come with every batch (`answered`). `losses`
        stand in place of the options'.
        """
        super().__init__()
        self.student = student
        self.options = options
        self.precision = precision
        self.weights, self.methods = weigh_losses(options, losses)
        self.asks_teacher = need_teacher(options, self.methods)
        if not answered:
            self._check(teacher)
        self._check_places()
        # In lists, so that they are no submodules and nothing trains them.
        self._teacher = [teacher]
        self._frozen: list[Frozen | None] = [None]
        if self.needs("teacher") and teacher is not None:
            self._frozen = [Frozen(teacher, precision)]
        self._feature_teacher: list[Frozen | None] = [None]  # made when it is first asked for maps
        self.full_phase_end = min((method.early for method in self.methods), default=1.0)
        self.full_phase = self.full_phase_end < 1  # switched off by the loop at `full_phase_end`
        self.network: Network = student.__call__
        self.shadows: Shadows | None = None  # the student's, while an update runs
        self.team: Team = SOLO  # whose processes have a part of the batch each
        self.on_features = any(method.on_features for method in self.methods)
        self.student_stages = NOWHERE
        self.teacher_stages = NOWHERE
        if self.on_features:
            self._pair_stages(student, self.teacher)
        pair = Pair(student, teacher, options, self.student_stages, self.teacher_stages, seed)
        self.parts = nn.ModuleDict(_build_parts(self.methods, pair))

    def _check(self, teacher: Classifier | None) -> None:
        if teacher is None and self.asks_teacher:
            asking = sorted(method.name for method in self.methods if method.asks_teacher)
            raise EchosetError(
                f"loss {', '.join(asking) or LABELS} needs a teacher; without one use labels='data'"
            )

    @property
    def teacher(self) -> Classifier:
        """The teacher, where a method asks it."""
        (teacher,) = self._teacher
        if teacher is None:
            raise EchosetError(f"loss {', '.join(self.weights)} needs a teacher, and there is none")
        return teacher

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
        own = find_stages(student, self.options.student_layers, maps)
        given = find_stages(teacher, self.options.teacher_layers, maps)
        if maps:
            self._check_pairs(own, given)
            count = min(len(own.layers), len(given.layers))
            own = own.last(count)
            given = given.last(count)
        self.student_stages = own
        self.teacher_stages = given

    def _check_pairs(self, own: Stages, given: Stages) -> None:
        named = self.options.student_layers and self.options.teacher_layers
        if named and len(own.layers) != len(given.layers):
            raise EchosetError(
                f"{len(own.layers)} student_layers and {len(given.layers)} teacher_layers make no "
                "pairs"
            )
        count = min(len(own.layers), len(given.layers))
        for method in self.methods:
            if method.pairs > count:
                raise EchosetError(
                    f"{method.name} compares {method.pairs} stages with one another, and only one "
                    "pair was found; name more layers"
                )

    def needs(self, need: Need) -> bool:
        """Whether a method needs this."""
        return any(need in method.needs for method in self.methods)

    @property
    def takes_answers(self) -> bool:
        """Whether the teacher's answers come with the lesson; methods on features ask it
        themselves, unless what they compare is kept.
        """
        return not self.on_features and self.asks_teacher

    @property
    def takes_hints(self) -> bool:
        """Whether the teacher's features can come with the lesson, and its answers with them: all
        methods that look at them can keep them.
        """
        return self._keeper is not None

    @property
    def _keeper(self) -> Part | None:
        """The part of the one method on features, where it says what to keep of them."""
        looking = [method for method in self.methods if method.on_features]
        if len(looking) != 1 or not looking[0].keeps or looking[0].part is None:
            return None
        return self._parts[looking[0].part.__name__]

    @property
    def _parts(self) -> Mapping[str, Part]:
        return cast(Mapping[str, Part], self.parts)

    @torch.no_grad()
    def ask_for_hints(self, images: Tensor) -> list[Tensor]:  # (B, C, H, W)
        """The teacher's answers, (B, K, *places), and what is kept of its features, (B, C, h, w)
        each in bfloat16.
        """
        keeper = self._keeper
        if keeper is None:
            raise EchosetError(f"nothing can be kept for the losses {', '.join(self.weights)}")
        rows: list[list[Tensor]] = []
        for part in images.split(at_once(images)):
            answers, maps, embedding = self._ask_teacher(part)
            kept = [each.bfloat16() for each in keeper.keep(maps, embedding)]
            rows.append([answers, *kept])
        return [torch.cat(column) for column in zip(*rows, strict=True)]

    @property
    def draws(self) -> bool:
        """Whether a method chooses at random."""
        return self.needs("draws")

    def forward(
        self,
        images: Tensor,  # (B, C, H, W) in [0, 1], as the student shall see them
        # (B, K, *places) the teacher's logits; (0,) where it is asked here, or there is none
        answers: Tensor,
        # (B, K, *places) the data's labels as probabilities; (0,) where the teacher decides them
        labels: Tensor,
        progress: Tensor,  # () the part of the training that is over
        draws: Tensor,  # (B,) in [0, 1), for methods that choose at random
        # (B, C, h, w) the teacher's, where they and the answers come with the lesson
        *hints: Tensor,
        # (B,) how much each image counts; None where all count alike
        importance: Tensor | None = None,
        # () the labels' sum for each image of the whole batch, where this is a part of one
        known_places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # (), (B, K, *places) twice
        logits, student_taps, part_taps = self._pass(images)
        features: dict[str, Any] = {"kept_hints": hints}
        if self.on_features and not hints:
            answers, teacher_maps, embedding = self._ask_teacher(images)
            features = {"raw_teacher_maps": teacher_maps, "teacher_embedding": embedding}
        batch = Batch(
            options=self.options,
            parts=self._parts,
            student=self.student,
            network=self.network,
            run_network=self._answer,
            images=images,
            logits=logits,
            answers=answers,
            given_labels=labels,
            progress=progress,
            draws=draws,
            importance=importance,
            known_places=known_places,
            all_logits=[logits],
            full_phase=self.full_phase,
            student_taps=student_taps,
            part_taps=part_taps,
            frozen=self._frozen[0],
            **features,
        )
        if self.team.world > 1 and self._compares:
            batch = gathered(batch, self.team)
        loss = add_losses(self.methods, self.weights, batch)
        return loss, logits, answers if answers.numel() else label_logits(labels)

    @property
    def _compares(self) -> bool:
        """Whether a method compares images with one another."""
        kinds = {method.compares for method in self.methods}
        has_maps = len(self.student.answer_shape) > 1
        return "always" in kinds or (has_maps and "maps" in kinds)

    def share(self, team: Team) -> None:
        """Learn a part of each batch, and leave the others to the other processes of the team. The
        mean of all processes' losses is the whole batch's.
        """
        asking = [method.name for method in self.methods if "teacher" in method.needs]
        if team.world > 1 and asking:
            raise EchosetError(
                f"loss {', '.join(asking)} chooses images of a batch and asks the networks anew, "
                "which several processes can't share; use one process, or leave it out"
            )
        self.team = team

    def _pass(self, images: Tensor) -> tuple[Tensor, Taps, dict[str, Taps]]:
        """The student's logits, and what was heard on the way: at the stages that are compared,
        and at those that a part asked for.
        """
        student_taps = Taps(self.student, self.student_stages)
        part_taps: dict[str, Taps] = {}
        for name, part in self._parts.items():
            if part.stages:
                part_taps[name] = Taps(self.student, part.stages)
        with ExitStack() as listening:
            for each in (student_taps, *part_taps.values()):
                listening.enter_context(each)
            if self.shadows is not None:
                listening.enter_context(self.shadows)
            logits = self._answer(self.network, images)
        return logits, student_taps, part_taps

    # (B, C, H, W) -> (B, K, *places) float32
    def _answer(self, network: Network, images: Tensor) -> Tensor:
        with forward_pass(images.device, self.precision):
            return network(images).float()

    def _ask_teacher(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """The teacher's answers, its maps as it computed them, and its embedding."""
        asked = self._feature_teacher[0]
        if asked is None:
            stages = self.teacher_stages
            asked = Frozen(self.teacher, self.precision, stages.layers, stages.head)
            self._feature_teacher = [asked]
        with torch.no_grad():
            return asked.with_features(images)

    def release_teacher(self) -> None:
        """Leave the teacher's memory to others, until it is asked again."""
        self._feature_teacher = [None]
        self.teacher.cpu()


def _build_parts(methods: list[Method], pair: Pair) -> dict[str, Part]:
    """What the methods train, by the names of the classes: what is drawn depends on nothing
    else.
    """
    classes = {method.part.__name__: method.part for method in methods if method.part}
    return {name: classes[name](pair) for name in sorted(classes)}
