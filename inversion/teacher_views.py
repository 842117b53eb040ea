"""How a teacher's images are changed before it sees them, by what its file says."""

from __future__ import annotations

from distill.models import ModelSpec
from inversion.options import TeacherViewOptions
from synthesis_kernels.errors import EchosetError


def trained_views(spec: ModelSpec) -> TeacherViewOptions:
    """How the teacher's training images were shifted, mirrored and cut out, by the notes in its
    file; a small shift without any.
    """
    told = spec.notes.get("views")
    if not isinstance(told, dict):
        return TeacherViewOptions()
    views = TeacherViewOptions(
        told.get("shift", 0.0), told.get("flip", False), told.get("cutout", 0.0)
    )
    check_teacher_views(views, "the teacher file's notes on its views")
    return views


def check_teacher_views(views: TeacherViewOptions, source: str) -> None:
    """Refuse what no image could be changed by."""
    remedy = "set --synthesis.objective.views, or save the teacher with notes that are right"
    for name in ("shift", "cutout"):
        value = getattr(views, name)
        if not isinstance(value, int | float) or not 0 <= value <= 0.5:
            raise EchosetError(f"{source}: {name} must lie in [0, 0.5], got {value!r}; {remedy}")
    if not isinstance(views.flip, bool):
        raise EchosetError(f"{source}: flip must be true or false, got {views.flip!r}; {remedy}")
