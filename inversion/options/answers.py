"""Options of the answers that a set carries. No torch here: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass

from distill.brief import Brief
from distill.options import ViewOptions
from distill.ranges import require_least


@dataclass(frozen=True, repr=False)
class AnswerOptions(Brief):
    """The teacher's answers that a finished set carries: `distill` then needs no teacher for it."""

    per_image: int = 0
    """Let the set carry the teacher's answers to so many views of each image; `distill` shows 16 by
    default, and of these sets what they carry. 0 = none. Short: --answers 16; a finished set gets
    them by the same command.
    """
    views: ViewOptions | None = None
    """How these views are made, e.g. '{"shift": 0.125, "flip": true, "rotate": 0}'. By default as
    the demo's own distillation makes them, and elsewhere as `distill` does for this teacher.
    """

    def __post_init__(self) -> None:
        require_least(self, "answers", 0, "per_image")
