"""What several verbs leave for a report: answers to images, and what a student was taught with."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.data.images import as_images
from distill.evaluation import check_fit, predict
from distill.sets.transfer_set import TransferSet
from distill.tasks.places import answers_fit, decide, most_answered
from inversion.cli.show import command_line
from inversion.pages.judging import judge, sample_places
from inversion.pages.report import told_of
from synthesis_kernels.backend import describe_device

if TYPE_CHECKING:
    from distill.data.images import Images
    from distill.models import Classifier
    from distill.tasks import Task
    from inversion.cli.schema import Common, DemoRun, DistillRun


class Decisions:
    """What networks decide on test data, kept part by part (see `distill.evaluation.Look`)."""

    def __init__(self, task: Task) -> None:
        self.dtype = task.label_dtype
        self.parts: list[Tensor] = []
        self.others: list[Tensor] = []

    def __call__(self, own: Tensor, other: Tensor | None) -> None:
        self.parts.append(own.to("cpu", self.dtype))
        if other is not None:
            self.others.append(other.to("cpu", self.dtype))

    @property
    def own(self) -> Tensor:  # (N, *places)
        """Of the network that is judged."""
        return torch.cat(self.parts)

    @property
    def other(self) -> Tensor | None:  # (N, *places)
        """Of the one beside it, where there is one."""
        return torch.cat(self.others) if self.others else None


def ask_on_data(
    network: Classifier, data: Images, run: Common, title: str = "evaluating"
) -> Tensor | None:
    """A network's answers to test data, which are checked first; None where they are too many to
    keep.
    """
    check_fit(network, data)
    if not answers_fit(len(data), network.answer_shape):
        return None
    return _predict(network, data.images, run, title)


def _predict(network: Classifier, images: Tensor, run: Common, title: str) -> Tensor:
    return predict(network, images, run.resolve_device(), title=title, quiet=run.quiet)


def judge_student(
    student: Classifier,
    teacher: Classifier | None,
    data: TransferSet | Images,
    run: Common,
    name: str,
) -> dict[str, Any]:
    """How a student decides beside its teacher, on some of the images that it learnt from."""
    places = sample_places(len(data), most_answered(student.answer_shape))
    images = as_images(data, name).images[places]
    names = None if teacher is None else teacher.class_names
    if isinstance(data, TransferSet):
        decisions = data.labels[places].long()
        names = names or data.class_names
    else:
        assert teacher is not None, "only a transfer set has answers of its own"
        decisions = decide(_predict(teacher, images, run, "asking the teacher"))
    logits = _predict(student, images, run, "asking the student")
    return judge(
        images,
        decisions,
        decide(logits),
        student.spec.classes,
        data=f"{name}, from which it learnt",
        tested=False,
        class_names=names,
        task=student.task,
    )


def tell_student(run: DemoRun | DistillRun, teacher: str, **figures: Any) -> dict[str, Any]:
    """What `student.json` says: these figures, and what the student was taught with."""
    return {
        "model": run.student.model,
        "teacher": teacher,
        **figures,
        **told_of(run.distillation),
        "command": command_line(),
        "seed": run.seed,
        "device": describe_device(run.resolve_device()),
        "torch": torch.__version__,
        "options": {
            "student": dataclasses.asdict(run.student),
            "distillation": dataclasses.asdict(run.distillation),
        },
    }


def name_of(teacher: Classifier) -> str:
    """How the teacher was named: the file of its weights, or its model."""
    named = teacher.named or {}
    return named.get("weights") or named.get("model") or teacher.spec.model
