"""Options of the answers that a set carries. No torch here: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass

from distill.brief import Brief
from distill.options import ViewOptions
from distill.ranges import require_least


@dataclass(frozen=True, repr=False)
class AnswerOptions(Brief):
    """The teacher's answers that a finished set carries: `distill` then needs no teacher for it."""

    per_image: int | None = None
    """Views of each image to which the set carries the teacher's answers; 0 = none. By default 16,
    and in a demo as many as its own distillation asks for, where answers are all that it asks; none
    where there is an answer for each pixel, of which a set carries 1 GiB at most.
    Short: --answers 16; a finished set gets them by the same command.
    """
    views: ViewOptions | None = None
    """How these views are made, e.g. '{"shift": 0.125, "flip": true, "rotate": 0}'. By default as
    the demo's own distillation makes them, and elsewhere as `distill` does for this teacher.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_image is not None:
            require_least(self, "answers", 0, "per_image")
