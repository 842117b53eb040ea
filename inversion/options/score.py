"""Options of the scorecard. No torch here: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass

from distill.brief import Brief
from distill.ranges import require_least
from inversion.scoring.scores import FEWEST_IMAGES


@dataclass(frozen=True, repr=False)
class ScoreOptions(Brief):
    """How much of a set the dearer scores look at. A sample follows from the images alone, so their
    order changes nothing.
    """

    gradients: int = 1000
    """Images whose distance to the decision boundary is measured."""
    compared: int = 10_000
    """Images compared with all the others (duplicates), and images that pixel diversity, neighbours
    and readouts use.
    """
    batch: int = 200
    """Images the teacher answers for at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "scores", 1, "gradients", "batch")
        require_least(self, "scores", FEWEST_IMAGES, "compared")
