"""The preset that follows from the teacher, where none is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inversion.cli.schema import DemoRun, DistillRun, SynthesizeRun
from inversion.cli.show import tell
from inversion.cli.words import values_of
from inversion.options import SynthesisOptions, TeacherOptions
from inversion.presets import choose

if TYPE_CHECKING:
    from inversion.cli.schema import Common

USUAL = "digits"
"""The preset whose values are the options' defaults."""

RECIPE = SynthesisOptions().recipe
"""The recipe that presets chosen for a teacher are for."""


def follow_teacher(verb: str, options: Common, arguments: Sequence[str]) -> Common:
    """The options once more, with the preset that suits the teacher below them.

    A file of options stands for itself, and so does a recipe of the user's choice: beside these no
    preset is chosen.
    """
    if not isinstance(options, DemoRun | SynthesizeRun | DistillRun) or options.preset:
        return options
    if values_of("--config", arguments):
        return options
    if not isinstance(options, DistillRun) and options.synthesis.recipe != RECIPE:
        tell(options, f"preset none: recipe {options.synthesis.recipe} was chosen")
        return options
    from inversion.cli.grammar import read_options
    from inversion.cli.verbs.shared import teacher_for

    places = []
    if isinstance(options, DistillRun):
        places = [place for place in (options.set, options.beside) if place]
    teacher = teacher_for(options.teacher, places)
    name, reason = choose(*_images_of(teacher, options.trust))
    tell(options, f"preset {name}: {reason} (--preset none for plain defaults)")
    return options if name == USUAL else read_options(verb, arguments, name)


def _images_of(teacher: TeacherOptions, trust: bool) -> tuple[int, int, Mapping[str, Any]]:
    """Channels and size of a teacher's images, and what its file notes; no network is built for
    that.
    """
    from distill.models import read_spec
    from distill.models.kinds import find_kind
    from inversion.teacher import BUNDLED, complete_contract, published_name
    from inversion.teacher_file import spell_out

    teacher = spell_out(teacher, BUNDLED, trust).options
    for name in (BUNDLED.get(teacher.model, teacher.model), teacher.weights):
        path = Path(name or "")
        spec = read_spec(path) if path.suffix == ".safetensors" and path.is_file() else None
        if spec is not None:
            return spec.channels, spec.size, spec.notes
    kind = find_kind(teacher.model)
    known: Mapping[str, Any] = {}
    if kind:  # what knows its own images: exported programs, networks on a hub
        published = published_name(teacher, kind)
        known = kind.contract(teacher.model, teacher.arguments, published)
    contract = complete_contract(teacher, known)
    return contract["channels"], contract["size"], {}
