"""Whether the answers that a set carries take the teacher's place."""

from __future__ import annotations

from dataclasses import asdict

from distill.data.images import Images
from distill.losses import Losses, need_teacher, weigh_losses
from distill.methods import LABELS
from distill.models import Classifier
from distill.options import DistillOptions
from distill.sets.answering import made_by
from distill.sets.answers import ViewAnswers
from distill.sets.transfer_set import TransferSet
from synthesis_kernels.errors import EchosetError


def carried_answers(
    data: TransferSet | Images,
    teacher: Classifier | None,
    options: DistillOptions,
    losses: Losses | None = None,
) -> ViewAnswers | None:
    """The answers that the set carries, where the lesson would ask its teacher for just these; None
    elsewhere. `losses` stand in place of the options'.
    """
    answers = data.answers if isinstance(data, TransferSet) else None
    if answers is None or not answers.hold_for(options.views_per_image, options.views):
        return None
    _, methods = weigh_losses(options, losses)
    if not need_teacher(options, methods) or any(method.on_features for method in methods):
        return None
    if teacher is not None and isinstance(data, TransferSet) and not made_by(data, teacher):
        return None
    return answers


def require_no_teacher(
    student: Classifier,
    data: TransferSet | Images,
    options: DistillOptions,
    losses: Losses | None = None,
) -> None:
    """Refuse a lesson that has to ask a teacher, where there is none, and say what needs none."""
    _, methods = weigh_losses(options, losses)
    if not need_teacher(options, methods):
        return
    carried = data.answers if isinstance(data, TransferSet) else None
    if carried is None:
        asking = sorted(method.name for method in methods if method.asks_teacher)
        raise EchosetError(
            f"loss {', '.join(asking) or LABELS} needs a teacher; without one use labels='data', "
            "or a set that carries its teacher's answers"
        )
    more = [method.name for method in methods if method.on_features or "teacher" in method.needs]
    if more:
        raise EchosetError(
            f"loss {', '.join(more)} asks the teacher itself, and the set carries its answers "
            "alone: give the teacher, or another loss (hinton, say)"
        )
    if not carried.hold_for(options.views_per_image, options.views):
        raise EchosetError(
            "the set carries its teacher's answers to other views "
            f"({_say_other(carried, options)}); ask for these, or give the teacher"
        )
    _require_fit(student, data)


def _say_other(carried: ViewAnswers, options: DistillOptions) -> str:
    """What of the views is otherwise than in the options."""
    wanted = asdict(options.views)
    told = []
    if not 0 < options.views_per_image <= carried.per_image:
        told.append(f"views_per_image {carried.per_image}, not {options.views_per_image}")
    for name, value in asdict(carried.views).items():
        if value != wanted[name]:
            told.append(f"views.{name} {value}, not {wanted[name]}")
    return ", ".join(told)


def _require_fit(student: Classifier, data: TransferSet | Images) -> None:
    """Refuse a student that takes other images than those that the answers are to."""
    contract = data.manifest["input"] if isinstance(data, TransferSet) else {}
    for name, value in contract.items():
        own = getattr(student.spec, name, value)
        if name in ("channels", "size", "classes", "task") and own != value:
            raise EchosetError(f"the student has {name} {own}, the set's answers {value}")
