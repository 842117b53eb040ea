"""The preset that follows from the teacher, where none is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inversion.cli.schema import DemoRun, DistillRun, SynthesizeRun
from inversion.cli.show import tell
from inversion.presets import choose

if TYPE_CHECKING:
    from inversion.cli.schema import Common

USUAL = "digits"
"""The preset whose values are the options' defaults."""


def follow_teacher(verb: str, options: Common, arguments: Sequence[str]) -> Common:
    """The options once more, with the preset that suits the teacher below them.

    A file of options stands for itself: beside --config no preset is chosen.
    """
    if not isinstance(options, DemoRun | SynthesizeRun | DistillRun) or options.preset:
        return options
    if any(word.partition("=")[0] == "--config" for word in arguments):
        return options
    from inversion.cli.grammar import read_options
    from inversion.cli.verbs.shared import teacher_for
    from inversion.teacher import read_teacher_spec

    places = []
    if isinstance(options, DistillRun):
        places = [place for place in (options.set, options.beside) if place]
    teacher = teacher_for(options.teacher, places)
    spec = read_teacher_spec(teacher, options.trust)
    name, reason = choose(spec.channels, spec.notes)
    tell(options, f"preset {name}: {reason} (--preset none for plain defaults)")
    return options if name == USUAL else read_options(verb, arguments, name)
