"""What a distillation leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

from distill.models import Classifier


@dataclass(frozen=True)
class DistillResult:
    """The student, and what was seen of it."""

    student: Classifier
    seconds: float
    agreement: float
    """Share of the latest views on which student and teacher (or label) chose the same class,
    before each update.
    """
    held_out_agreement: float | None = None
    """The same on images of the set that were kept apart, where there was patience: of the student
    that is returned.
    """
    steps: int = 0
    """Updates made; fewer than asked for where patience ran out."""
    key: str = ""
    """What the student belongs to, as `lesson_key` tells it; empty without a folder."""
