"""What a study refuses before its first cell starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from distill.data.corrupt import corrupt, draw_balanced
from distill.data.images import Images, as_images
from distill.evaluation import check_attacks, check_fit
from distill.learner import Learner
from distill.lessons import check_lesson
from distill.models import Classifier
from distill.sets.transfer_set import TransferSet
from distill.students import build_student
from distill.study.cell import Shared
from distill.study.plan import ORIGINAL, method_loss
from synthesis_kernels.errors import EchosetError


def check_study(
    shared: Shared, sets: Mapping[str, TransferSet | Images], original: Images | None
) -> None:
    """Refuse what would fail in the last cell before the first one starts."""
    teacher = shared.teacher
    check_fit(teacher, shared.test)
    check_attacks(teacher, shared.options.attacks)
    if not sets and original is None:
        raise EchosetError('a study needs a set: --sets \'{"name": "path"}\'')
    for name in sets:
        _check_name(name)
    if original is not None:
        corrupt(original, teacher.spec.classes, "none", 0, teacher.task)
    is_damaged = any(how != "none" for how in shared.options.corruptions)
    if is_damaged and shared.distillation.labels != "data":
        raise EchosetError(
            "corruptions change the data's labels, and the teacher's are used: add "
            "--distillation.labels data"
        )
    student = build_student(shared.student, teacher.contract)
    if sets:
        _check_methods(shared, student)
    for name, data in sets.items():
        _check_set(shared, student, as_images(data, name))


def _check_name(name: str) -> None:
    """Refuse a set's name that file names can't have."""
    is_plain = bool(name) and "/" not in name and "--" not in name and not name.startswith(".")
    if name == ORIGINAL or not is_plain:
        raise EchosetError(
            f"'{name}' can't be the name of a set: it becomes part of file names, and "
            f"'{ORIGINAL}' is taken"
        )


def _check_methods(shared: Shared, student: Classifier) -> None:
    """Build every method's learner once: that says whether it can be had with these two
    networks.
    """
    for method in shared.options.methods:
        loss = method_loss(method, shared.distillation.labels == "data")
        options = replace(shared.distillation, loss=loss)
        Learner(student, shared.teacher, options)


def _check_set(shared: Shared, student: Classifier, images: Images) -> None:
    """Refuse a set that can't be drawn from, damaged or taught as the study asks."""
    classes = shared.teacher.spec.classes
    task = shared.teacher.task
    if shared.options.images:
        images = draw_balanced(images, classes, shared.options.images, 0, task)
    if shared.distillation.labels == "data":
        for how in shared.options.corruptions:
            corrupt(images, classes, how, 0, task)
    check_lesson(student, images, shared.teacher, shared.distillation)
