"""What a student is taught with: views of the images to learn from, and the answers and labels that
go with them.
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.data.augment import make_views, shows_only
from distill.data.images import Images
from distill.data.pixels import fit_pixels
from distill.learner import Learner
from distill.models import Classifier, as_classifier
from distill.models.wrapping import as_student
from distill.options import DistillOptions
from distill.sets.answers import ViewAnswers
from distill.sets.transfer_set import TransferSet
from distill.tasks.places import VOID, enlarge, pool_rows
from distill.views import ask, bank_answers, kept_shape, to_input
from synthesis_kernels.backend import free_cycles, say_once
from synthesis_kernels.errors import EchosetError

ASKED_AGAIN = "not kept, so the teacher is asked at every step"


class Lessons:
    """The images on the device, some of them held out where there is patience, and a batch for each
    step from the others.
    """

    def __init__(
        self,
        data: TransferSet | Images,
        learner: Learner,
        seed: int,
        device: torch.device,
        answers: ViewAnswers | None = None,
    ) -> None:
        """With the `answers` that a set carries, views are made as they were for these: from the
        set's own seed, and of all images. What shows an image that is held out is left out.
        """
        self.learner = learner
        self.seed = seed if answers is None else answers.seed
        self.answers = answers
        self.device = device
        self.options = learner.options
        self.task = learner.student.task
        self.places = learner.student.answer_shape[1:]
        spec = learner.student.spec
        pool = fit_pixels(data.images, spec.channels, spec.size).to(device)
        kept, held = _split(len(pool), self.options, seed, device)
        self.pool = pool if answers is not None else pool[kept]  # (N, C, H, W) uint8
        self.held_out = pool[held]
        # None where the teacher's decisions are the labels.
        self.rows: Tensor | None = None  # (N, K, *places), as `pool_rows` has them
        self.held_out_labels: Tensor | None = None  # (M, *places)
        if self.options.labels == "data" and data.labels is not None:
            labels = data.labels.to(device)
            self.rows = pool_rows(labels if answers is not None else labels[kept], spec.classes)
            self.held_out_labels = labels[held].long()
        elif answers is not None and data.labels is not None:
            self.held_out_labels = data.labels.to(device)[held].long()
        # Numbers of the views that may be shown; None for all.
        self.shown: Tensor | None = None  # (M,) int64
        if answers is not None and self.options.patience:
            self.shown = self._shown(kept)
        # Answers (N·V, K, h, w), or one an image (N·V, K), then hints (N·V, C, h, w).
        self.bank: list[Tensor] = []

    def ask_beforehand(self, quiet: bool, folder: Path | None = None) -> None:
        """Keep the teacher's answers and hints for every view, unless so few steps are taken that
        asking at each is less work. A `folder` keeps answers alone: hints are asked for again.
        """
        options = self.options
        learner = self.learner
        if self.answers is not None:
            answers = self.answers.tensor[:, : options.views_per_image]
            self.bank = [answers.flatten(0, 1).to(self.device)]
            return
        views = len(self.pool) * options.views_per_image
        pays = 0 < views <= options.steps * options.batch
        pays = pays and self._answers_fit(views, quiet)
        hints = pays and learner.takes_hints and self._hints_fit(views, quiet)
        if not (pays and (hints or learner.takes_answers)):
            return
        bank = bank_answers(
            learner.teacher,
            self.pool,
            options.views_per_image,
            options.views,
            self.seed,
            learner.precision,
            quiet,
            None if hints else folder,
            look=learner.ask_for_hints if hints else None,
            team=learner.team,
        )
        self.bank = [part.flatten(0, 1) for part in bank]
        free_cycles(self.device)
        if self.device.type == "cuda" and not learner.needs("teacher"):
            learner.release_teacher()  # it is not asked again, and its memory is wanted

    def _answers_fit(self, views: int, quiet: bool) -> bool:
        """Whether answers in float32 may be kept; where there is one an image, they always may."""
        learner = self.learner
        if not (learner.asks_teacher and self.places):
            return True
        teacher = learner.teacher
        is_whole = learner.takes_hints or learner.team.world > 1
        shape = teacher.answer_shape if is_whole else kept_shape(teacher)
        size = views * math.prod(shape) * 4
        if size <= self.options.hints_gib * 2**30:
            return True
        if not quiet:
            say_once(f"answers for {views:,} views: {size / 2**30:.1f} GiB, {ASKED_AGAIN}")
        return False

    def _hints_fit(self, views: int, quiet: bool) -> bool:
        """Not by how much memory is free: hints that are kept are rounded, and a run that goes on
        has to decide as before.
        """
        _, *hints = self.learner.ask_for_hints(to_input(self.pool[:1]))
        size = views * sum(part.nbytes for part in hints)
        fit = size <= self.options.hints_gib * 2**30
        if not quiet:
            fate = "kept beforehand" if fit else ASKED_AGAIN
            say_once(f"hints for {views:,} views: {size / 2**30:.1f} GiB, {fate}")
        return fit

    def draw(
        self,
        step: Tensor,  # () int64
        generator: torch.Generator,
    ) -> tuple[Tensor, ...]:
        """A batch as `Learner.forward` takes it: images, answers, labels, the part of the training
        that is over, draws, hints. All of it on the device, so that a graph can hold it. Of a team,
        all draw the same, and each has its part.
        """
        options = self.options
        device = self.device
        per_image = options.views_per_image
        drawn = self._draw_numbers(generator)
        if per_image:
            index = drawn // per_image
            view = drawn % per_image
        else:  # a view nobody has seen yet
            index = drawn
            view = step * options.batch + torch.arange(options.batch, device=device)
        part = self.learner.team.part
        drawn = part(drawn)
        index = part(index)
        view = part(view)
        images = make_views(self.pool, index, view, options.views, self.seed)
        nothing = torch.empty(0, device=device)
        answers = nothing
        hints: list[Tensor] = []
        if self.bank:
            answers, *hints = [part[drawn] for part in self.bank]
            # Those that a set carries are in float16, and maps at the teacher's own size.
            answers = enlarge(answers.float(), self.places)
        elif self.learner.takes_answers:
            answers = ask(self.learner.teacher, images, self.learner.precision)
        labels = nothing
        if self.rows is not None:
            labels = self.task.mixed_rows(
                self.rows, index, view, self.pool, options.views, self.seed
            )
        draws = nothing
        if self.learner.draws:
            draws = part(torch.rand(options.batch, generator=generator, device=device))
        return images, answers, labels, step / options.steps, draws, *hints

    def _draw_numbers(self, generator: torch.Generator) -> Tensor:  # (B,) int64
        """Numbers of views; of images, where each view is a new one."""
        count = len(self.pool) * max(self.options.views_per_image, 1)
        if self.shown is not None:
            count = len(self.shown)
        size = (self.options.batch,)
        drawn = torch.randint(count, size, generator=generator, device=self.device)
        return drawn if self.shown is None else self.shown[drawn]

    def _shown(self, kept: Tensor | slice) -> Tensor:  # (M,) int64
        """Numbers of the views that show no image but those that are kept."""
        per_image = self.options.views_per_image
        numbers = torch.arange(len(self.pool) * per_image, device=self.device)
        allowed = torch.zeros(len(self.pool), dtype=torch.bool, device=self.device)
        allowed[kept] = True
        place = (numbers // per_image, numbers % per_image)
        return numbers[shows_only(allowed, *place, self.options.views, self.seed)]


def contract_of(teacher: Classifier | None, data: TransferSet | Images) -> dict[str, Any]:
    """What a student that says nothing of itself is to take and give."""
    if teacher is not None:
        return teacher.contract
    if isinstance(data, TransferSet):
        return dict(data.manifest["input"])
    return {}


def as_teacher(network: Classifier | nn.Module, data: TransferSet | Images) -> Classifier:
    """The network as a teacher; a plain one that made the set takes what the set says of it."""
    if isinstance(data, TransferSet) and not isinstance(network, Classifier):
        with suppress(EchosetError):
            maker = as_student(network, data.manifest["input"])
            if maker.weight_hash() == data.manifest["teacher"]["weight_hash"]:
                return maker
    return as_classifier(network)


def _split(
    count: int, options: DistillOptions, seed: int, device: torch.device
) -> tuple[Tensor, Tensor] | tuple[slice, slice]:
    """Places of the images to learn from, and of those held out; all (without a copy) and none
    where there is no patience.
    """
    if not options.patience:
        return slice(None), slice(0)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(device)
    held = round(count * options.held_out)
    return order[held:].sort().values, order[:held].sort().values


def check_images(data: object) -> None:
    """Refuse a folder's name, say, in the place of what is in it."""
    if not isinstance(data, TransferSet | Images):
        raise EchosetError(
            "images are a transfer set, as TransferSet.load(folder) gives it, or those that "
            f"load_images gives, not a {type(data).__name__}"
        )


def check_lesson(
    student: Classifier,
    data: TransferSet | Images,
    teacher: Classifier | None,
    options: DistillOptions,
) -> None:
    """Refuse what can't be taught, before any work."""
    if options.steps < 1:
        raise EchosetError(f"steps must be at least 1, got {options.steps}")
    if options.patience and not 1 <= round(len(data) * options.held_out) <= len(data) - 2:
        raise EchosetError(
            f"held_out {options.held_out} of {len(data)} images leaves none to judge by, or none "
            "to learn from"
        )
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise EchosetError(
            "the student's weights are frozen, as load_teacher leaves them; call "
            "student.requires_grad_(True) first"
        )
    if len(data) < 2:
        raise EchosetError(f"there must be two images at least to learn from, got {len(data)}")
    spec = student.spec
    for name in ("channels", "size", "classes", "task"):
        if teacher is not None and getattr(teacher.spec, name) != getattr(spec, name):
            raise EchosetError(
                f"the student has {name} {getattr(spec, name)}, the teacher "
                f"{getattr(teacher.spec, name)}"
            )
    if isinstance(data, TransferSet) and data.classes != spec.classes:
        raise EchosetError(f"the student knows {spec.classes} classes, the set {data.classes}")
    if options.labels == "data":
        if data.labels is None:
            raise EchosetError(
                f"{getattr(data, 'name', 'the data')} has no labels; use labels=teacher"
            )
        check_label_shape(data.labels, student, getattr(data, "name", "the data"))
        check_label_values(data.labels, spec.classes, "the data", "the student")


def check_label_values(labels: Tensor, classes: int, name: str, network: str) -> None:
    """Refuse labels of no class. In label maps some may be void, but not all."""
    low = int(labels.min())
    high = int(labels.max())
    if low == VOID and labels.ndim > 1:
        if high == VOID:
            raise EchosetError(f"{name} has label maps in which no place is known")
        low = int(labels[labels != VOID].min())
    if low < 0 or high >= classes:
        raise EchosetError(
            f"{name} has labels from {low} to {high}, {network} knows classes 0 to {classes - 1}"
        )


def check_label_shape(labels: Tensor, network: Classifier, name: str) -> None:
    """Refuse labels that are not one for each decision of the network."""
    expected = network.answer_shape[1:]
    given = tuple(labels.shape[1:])
    if given != expected:
        raise EchosetError(
            f"{name} has labels of shape {given} an image, and {network.spec.task} takes {expected}"
        )
