"""Whether the answers that a set carries take the teacher's place."""

from __future__ import annotations

from dataclasses import asdict

from distill.data.images import Images
from distill.losses import Losses, need_teacher, weigh_losses
from distill.methods import LABELS, Method
from distill.models import Classifier
from distill.options import DistillOptions
from distill.sets.answering import made_by
from distill.sets.answers import ViewAnswers
from distill.sets.transfer_set import TransferSet
from distill.sizes import settle_size
from synthesis_kernels.errors import EchosetError


def answers_suffice(
    answers: ViewAnswers, options: DistillOptions, losses: Losses | None = None
) -> bool:
    """Whether these are what a lesson would ask its teacher for, and all of it. `losses` stand in
    place of the options'.
    """
    if not takes_answers_alone(options, losses):
        return False
    return answers.hold_for(options.views_per_image, options.views)


def takes_answers_alone(options: DistillOptions, losses: Losses | None = None) -> bool:
    """Whether the teacher's answers to views are all that a lesson asks it for."""
    _, methods = weigh_losses(options, losses)
    return need_teacher(options, methods) and not _beyond_answers(methods)


def _beyond_answers(methods: list[Method]) -> list[str]:
    """Names of the methods that ask the teacher for more than answers."""
    return [method.name for method in methods if method.on_features or "teacher" in method.needs]


def carried_answers(
    data: TransferSet | Images,
    teacher: Classifier | None,
    options: DistillOptions,
    losses: Losses | None = None,
) -> ViewAnswers | None:
    """The answers that the set carries, where they suffice; None where a teacher is asked, another
    one than made the set, say.
    """
    if not isinstance(data, TransferSet) or data.answers is None:
        return None
    if not answers_suffice(data.answers, options, losses):
        return None
    if teacher is not None and not made_by(data, teacher):
        return None
    return data.answers


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
    if not isinstance(data, TransferSet) or data.answers is None:
        asking = sorted(method.name for method in methods if method.asks_teacher)
        raise EchosetError(
            f"loss {', '.join(asking) or LABELS} needs a teacher; without one use labels='data', "
            "or a set that carries its teacher's answers"
        )
    if not answers_suffice(data.answers, options, losses):
        raise EchosetError(say_lack(data.answers, options, losses))
    contract = {**data.manifest["input"]}
    contract["size"] = settle_size(contract["size"])
    for name in ("channels", "size", "classes", "task"):
        own = getattr(student.spec, name)
        if own != contract[name]:
            raise EchosetError(f"the student has {name} {own}, the set's answers {contract[name]}")


def say_lack(answers: ViewAnswers, options: DistillOptions, losses: Losses | None = None) -> str:
    """Why these answers don't suffice, and what would help."""
    _, methods = weigh_losses(options, losses)
    beyond = _beyond_answers(methods)
    if beyond:
        return (
            f"loss {', '.join(beyond)} asks the teacher itself, and the set carries its answers "
            "alone; give the teacher, or another loss (hinton, say)"
        )
    return (
        f"the set carries its teacher's answers to other views ({_say_other(answers, options)}); "
        "ask for these, or give the teacher"
    )


def _say_other(answers: ViewAnswers, options: DistillOptions) -> str:
    """What of the views is otherwise than in the options."""
    told = []
    if not 0 < options.views_per_image <= answers.per_image:
        told.append(f"views_per_image {answers.per_image}, not {options.views_per_image}")
    wanted = asdict(options.views)
    for name, value in asdict(answers.views).items():
        if value != wanted[name]:
            told.append(f"views.{name} {value}, not {wanted[name]}")
    return ", ".join(told)
