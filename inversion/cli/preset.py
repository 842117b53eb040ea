"""The preset that follows from the teacher, where none is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.options import DistillOptions, ViewOptions
from distill.sizes import sides
from distill.tasks import DENSE
from distill.tasks import USUAL as USUAL_TASK
from inversion.cli.schema import DemoRun, DistillRun, SynthesizeRun
from inversion.cli.show import tell
from inversion.cli.words import values_of
from inversion.options import SynthesisOptions, TeacherOptions
from inversion.presets import choose, for_recipe, read_preset, students_for
from synthesis_kernels.errors import EchosetError, TrustError

if TYPE_CHECKING:
    from distill.models import ModelSpec
    from inversion.cli.schema import Common

USUAL = "digits"
"""The preset whose values are the options' defaults."""

VIEWS = "distillation.views."

RECIPE = SynthesisOptions().recipe
"""The recipe that presets chosen for a teacher are for."""


def follow_teacher(verb: str, options: Common, arguments: Sequence[str]) -> Common:
    """The options once more, with the preset that suits the teacher below them.

    A file of options stands for itself, and so does a recipe of the user's choice: beside these no
    preset is chosen, but that of the recipe itself. Beside a recipe the students are still some
    that can do the teacher's task.
    """
    if not isinstance(options, DemoRun | SynthesizeRun | DistillRun) or options.preset:
        return options
    if values_of("--config", arguments):
        return options
    from inversion.cli.grammar import read_options

    if not isinstance(options, DistillRun) and options.synthesis.recipe != RECIPE:
        recipe = options.synthesis.recipe
        task = _known_of(options.teacher, options.trust)[0]
        suited = for_recipe(recipe, task)
        if suited:
            tell(options, f"preset {suited}: recipe {recipe} was chosen, and label maps")
            return read_options(verb, arguments, suited)
        tell(options, f"preset none: recipe {recipe} was chosen")
        students = students_for(task)
        return read_options(verb, arguments, "none", students) if students else options
    if isinstance(options, DistillRun):
        return _follow_set(verb, options, arguments)
    name, reason = choose(*_known_of(options.teacher, options.trust))
    tell(options, f"preset {name}: {reason} (--preset none for plain defaults)")
    return options if name == USUAL else read_options(verb, arguments, name)


def _follow_set(verb: str, run: DistillRun, arguments: Sequence[str]) -> Common:
    """The options of a lesson once more, with the preset that suits the teacher. Of a set that
    carries its teacher's answers the views are those that these are to, where they suffice; and
    where that teacher can't be found, the loss is one that they do for.
    """
    from distill.carried import answers_suffice
    from inversion.cli.grammar import read_options
    from inversion.cli.verbs.answering import answers_for
    from inversion.cli.verbs.shared import teacher_for

    places = [place for place in (run.set, run.beside) if place]
    answers = answers_for(run)
    loss: dict[str, Any] = {}
    try:
        name, reason = choose(*_known_of(teacher_for(run.teacher, places), run.trust))
    except EchosetError as error:
        if answers is None or run.teacher is not None:
            raise
        lacks = "it needs --trust" if isinstance(error, TrustError) else "it is not at hand"
        task = DENSE if answers.shape[1:] else USUAL_TASK
        name, reason = choose(task, answers.channels, answers.side, {})
        loss = {"distillation.loss": DistillOptions().loss}
        reason += f"; {lacks}, so that its answers in {run.set} teach alone"
    tell(run, f"preset {name}: {reason} (--preset none for plain defaults)")
    if answers is not None:
        views = {f"{VIEWS}{key}": value for key, value in asdict(answers.views).items()}
        views["distillation.views_per_image"] = answers.per_image
        options = read_options(verb, arguments, name, {**views, **loss})
        assert isinstance(options, DistillRun), "the same verb as before"
        if loss or answers_suffice(answers, options.distillation):
            return options
    return run if name == USUAL else read_options(verb, arguments, name)


def usual_views(spec: ModelSpec, preset: str | None) -> ViewOptions:
    """The views that `distill` shows where nothing is said of them: those of the preset, if it
    names any, or of the one that suits such a teacher.
    """
    for name in (preset or "none", choose(*_suited(spec))[0]):
        values = read_preset(name)
        views = {key.removeprefix(VIEWS): value for key, value in values.items() if VIEWS in key}
        if views:
            return replace(DistillOptions().views, **views)
    return DistillOptions().views


def _suited(spec: ModelSpec) -> tuple[str, int, int, Mapping[str, Any]]:
    """What a preset has to suit."""
    return spec.task, spec.channels, spec.side, spec.notes


def _known_of(teacher: TeacherOptions, trust: bool) -> tuple[str, int, int, Mapping[str, Any]]:
    """A teacher's task, channels and shorter side of its images, and what its file notes; no
    network is built for that.
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
            return _suited(spec)
    kind = find_kind(teacher.model)
    known: Mapping[str, Any] = {}
    if kind:  # what knows its own images: exported programs, networks on a hub
        published = published_name(teacher, kind)
        known = kind.contract(teacher.model, teacher.arguments, published)
    contract = complete_contract(teacher, known)
    return contract["task"], contract["channels"], min(sides(contract["size"])), {}
