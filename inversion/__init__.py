"""Make a small, class-balanced transfer set from a trained network and nothing else.

    from inversion import load_teacher, synthesize, SynthesisOptions

Names are imported when they are first used, so that the command line answers fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inversion.driver import synthesize, synthesize_share
    from inversion.inspection import Inspection, inspect_teacher
    from inversion.jobs import plan
    from inversion.options import (
        AdversaryOptions,
        AnswerOptions,
        BoundaryOptions,
        CollectOptions,
        GeneratorOptions,
        ObjectiveOptions,
        ReplayOptions,
        ScoreOptions,
        SynthesisOptions,
        TeacherOptions,
    )
    from inversion.presets.found import Preset, find_preset
    from inversion.scoring.scorecard import Scorecard, score
    from inversion.sources.boundary import attack_boundaries
    from inversion.sources.collect import collect, collect_share
    from inversion.sources.stream import open_source
    from inversion.teacher import MNIST_SLICE, load_teacher

__version__ = "0.1.0"

_HOMES = {
    "inversion.sources.collect": ("collect", "collect_share"),
    "inversion.jobs": ("plan",),
    "inversion.options": (
        "AdversaryOptions",
        "AnswerOptions",
        "BoundaryOptions",
        "CollectOptions",
        "GeneratorOptions",
        "ObjectiveOptions",
        "ReplayOptions",
        "ScoreOptions",
        "SynthesisOptions",
        "TeacherOptions",
    ),
    "inversion.presets.found": ("Preset", "find_preset"),
    "inversion.scoring.scorecard": ("Scorecard", "score"),
    "inversion.sources.boundary": ("attack_boundaries",),
    "inversion.sources.stream": ("open_source",),
    "inversion.driver": ("synthesize", "synthesize_share"),
    "inversion.inspection": ("Inspection", "inspect_teacher"),
    "inversion.teacher": ("MNIST_SLICE", "load_teacher"),
}
__all__ = [
    "MNIST_SLICE",
    "AdversaryOptions",
    "AnswerOptions",
    "BoundaryOptions",
    "CollectOptions",
    "GeneratorOptions",
    "Inspection",
    "ObjectiveOptions",
    "Preset",
    "ReplayOptions",
    "ScoreOptions",
    "Scorecard",
    "SynthesisOptions",
    "TeacherOptions",
    "attack_boundaries",
    "collect",
    "collect_share",
    "find_preset",
    "inspect_teacher",
    "load_teacher",
    "open_source",
    "plan",
    "score",
    "synthesize",
    "synthesize_share",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'inversion' has no attribute '{name}'")
