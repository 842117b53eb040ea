"""Make a small, class-balanced transfer set from a trained network and nothing else.

    from inversion import load_teacher, synthesize, SynthesisOptions

Names are imported when they are first used, so that the command line answers fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inversion.jobs import plan
    from inversion.options import ScoreOptions, SynthesisOptions, TeacherOptions
    from inversion.scorecard import Scorecard, score
    from inversion.synthesis import synthesize
    from inversion.teacher import MNIST_SLICE, Inspection, inspect_teacher, load_teacher

__version__ = "0.1.0"

_HOMES = {
    "inversion.jobs": ("plan",),
    "inversion.options": ("ScoreOptions", "SynthesisOptions", "TeacherOptions"),
    "inversion.scorecard": ("Scorecard", "score"),
    "inversion.synthesis": ("synthesize",),
    "inversion.teacher": ("MNIST_SLICE", "Inspection", "inspect_teacher", "load_teacher"),
}
__all__ = [
    "MNIST_SLICE",
    "Inspection",
    "ScoreOptions",
    "Scorecard",
    "SynthesisOptions",
    "TeacherOptions",
    "inspect_teacher",
    "load_teacher",
    "plan",
    "score",
    "synthesize",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'inversion' has no attribute '{name}'")
