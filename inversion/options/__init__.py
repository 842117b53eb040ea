"""Options of what makes a set or judges one, a file a stage. No torch here: `--help` reads them."""

from inversion.options.answers import AnswerOptions
from inversion.options.collect import BesideOptions, BoundaryOptions, CollectOptions
from inversion.options.score import ScoreOptions
from inversion.options.synthesis import (
    AdversaryOptions,
    GeneratorOptions,
    ObjectiveOptions,
    ReplayOptions,
    SynthesisOptions,
)
from inversion.options.teacher import TeacherOptions, TeacherViewOptions

__all__ = [
    "AdversaryOptions",
    "AnswerOptions",
    "BesideOptions",
    "BoundaryOptions",
    "CollectOptions",
    "GeneratorOptions",
    "ObjectiveOptions",
    "ReplayOptions",
    "ScoreOptions",
    "SynthesisOptions",
    "TeacherOptions",
    "TeacherViewOptions",
]
