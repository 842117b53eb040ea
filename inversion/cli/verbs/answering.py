"""Answers that a set carries: added to a finished set, and taken in the teacher's place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distill.carried import answers_suffice, say_lack, takes_answers_alone
from distill.losses import asks_teacher
from distill.options import DistillOptions
from distill.sets.answering import add_answers, require_budget
from distill.sets.transfer_set import find_set_answers
from inversion.cli.preset import usual_views
from inversion.cli.show import tell
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from distill.models import Classifier
    from distill.sets.answers import ViewAnswers
    from distill.sets.transfer_set import TransferSet
    from inversion.cli.schema import CollectRun, DemoRun, DistillRun, SynthesizeRun
    from inversion.options import AnswerOptions

USUAL = DistillOptions().views_per_image
"""Views of each image that a set carries answers to."""


def carry_answers(
    run: CollectRun | DemoRun | SynthesizeRun,
    transfer_set: TransferSet,
    teacher: Classifier,
    folder: Path | str,
    lesson: DistillOptions | None = None,
) -> TransferSet:
    """The set of the folder with the answers that --answers asks for. Where nothing is said of
    them, they are those that the `lesson` to come wants, or `distill` for this teacher.
    """
    wanted = run.answers
    per_image = wanted.per_image
    if per_image is None and teacher.answer_shape[1:]:
        per_image = 0  # an answer a pixel, of each view
    if per_image is None:
        per_image = USUAL if lesson is None else _wanted_by(lesson, len(transfer_set))
    if not per_image:
        if wanted.per_image == 0 and transfer_set.answers is not None:
            tell(run, f"{folder} carries answers already, and keeps them")
        return transfer_set
    views = wanted.views or (lesson.views if lesson else None)
    if views is None:
        views = usual_views(teacher.spec, getattr(run, "preset", None))
    return add_answers(folder, teacher, per_image, views, runtime=run)


def check_answers(wanted: AnswerOptions, teacher: Classifier, images: int) -> None:
    """Refuse answers that would take too much, before a set is made for them."""
    if wanted.per_image:
        require_budget(teacher, images, wanted.per_image)


def _wanted_by(lesson: DistillOptions, images: int) -> int:
    """Views of each image whose answers the lesson asks for beforehand, and nothing else."""
    pays = images * lesson.views_per_image <= lesson.steps * lesson.batch
    return lesson.views_per_image if pays and takes_answers_alone(lesson) else 0


def say_carried(transfer_set: TransferSet) -> str:
    """What to add where a set is described."""
    answers = transfer_set.answers
    if answers is None:
        return ""
    return f"; with the teacher's answers to {answers.per_image} views of each"


def answers_for(run: DistillRun) -> ViewAnswers | None:
    """The answers that the set of a lesson carries; None where the lesson is not of that set's
    images alone, as they are.
    """
    if run.beside is not None or run.corrupt != "none":
        return None
    return find_set_answers(run.set)


def needs_no_teacher(run: DistillRun) -> bool:
    """Whether what the set carries is all that the lesson needs, and no teacher was named."""
    answers = answers_for(run)
    if answers is None or run.teacher is not None:
        return False
    if answers_suffice(answers, run.distillation):
        tell(run, f"{run.set} carries its teacher's answers: no teacher is asked")
        return True
    return not asks_teacher(run.distillation)


@contextmanager
def saying_what_is_carried(run: DistillRun) -> Iterator[None]:
    """Around finding a lesson's teacher: where it can't be found, say what would need none."""
    try:
        yield
    except EchosetError as error:
        answers = answers_for(run)
        if answers is None or run.teacher is not None:
            raise
        lack = say_lack(answers, run.distillation)
        raise EchosetError(f"{error}. Without a teacher: {lack}") from error
