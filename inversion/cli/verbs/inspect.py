"""Say what a teacher is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from distill.models import Classifier
from distill.names import printable
from inversion.cli.show import finish, new_table, tell
from inversion.cli.verbs.rehearsal import Rehearsal, rehearse
from inversion.driver import check_synthesis
from inversion.health import examine
from inversion.inspection import Inspection, check_network, inspect_teacher
from inversion.options import SynthesisOptions
from inversion.pixels import Pixels
from inversion.presets import choose, for_recipe, students_for
from inversion.recipes import RECIPES, find_recipe
from inversion.sources import DRAWN
from inversion.teacher import load_teacher
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from rich.table import Table

    from inversion.cli.schema import DemoRun, InspectRun

MOST_LAYERS = 8


def execute(run: InspectRun) -> int:
    """Load a teacher, look it over, say what was found and what can be made of it."""
    teacher = load_teacher(run.teacher, trust=run.trust)
    untrained = check_network(teacher)
    inspection = inspect_teacher(teacher, needs_batch_norm=False, untrained=untrained)
    health = examine(teacher, untrained)
    warnings = list(dict.fromkeys([*inspection.warnings, *health.warnings]))
    recipes = _find_possible(run, teacher, inspection)
    table = new_table(f"Teacher {inspection.spec.model}", "", "found")
    _add_network(table, inspection, health.pixels)
    possible = [name for name, reason in recipes.items() if reason is None]
    table.add_row("recipes for synthesize", ", ".join(possible) or "none")
    for reason in dict.fromkeys(filter(None, recipes.values())):
        named = [name for name, other in recipes.items() if other == reason]
        table.add_row(f"not {', '.join(named)}", reason)
    table.add_row("sources for collect", ", ".join(DRAWN))
    estimate = None
    if run.estimate and possible:
        tell(run, "a few steps are made and timed: some ten seconds")
        estimate = _estimate(run, teacher, possible[0])
    if estimate:
        table.add_row("a set and a student", estimate.line)
    table.add_row("warnings", "\n".join(warnings) or "none")
    _add_notes(table, inspection.spec.notes)
    document: dict[str, Any] = dataclasses.asdict(inspection)
    document |= {
        "warnings": warnings,
        "pixels": health.pixels and health.pixels._asdict(),
        "confidence": health.confidence,
        "recipes": recipes,
        "sources": list(DRAWN),
        "estimate": estimate and dataclasses.asdict(estimate),
    }
    return finish(run, table, document)


def _estimate(run: InspectRun, teacher: Classifier, recipe: str) -> Rehearsal:
    """What the verbs' defaults will take: those of the preset that suits the teacher, or plain ones
    for another recipe than the presets'.
    """
    demo = _usual_options(teacher, recipe)
    synthesis = dataclasses.replace(demo.synthesis, recipe=recipe)
    return rehearse(teacher, synthesis, demo.student, demo.distillation, run)


def _usual_options(teacher: Classifier, recipe: str) -> DemoRun:
    """What the verbs take for this teacher where nothing is said."""
    from inversion.cli.grammar import read_options

    spec = teacher.spec
    preset = for_recipe(recipe, spec.task) or "none"
    if recipe == SynthesisOptions().recipe:
        preset = choose(spec.task, spec.channels, spec.side, spec.notes)[0]
    return cast("DemoRun", read_options("demo", [], preset, students_for(spec.task)))


def _add_network(table: Table, inspection: Inspection, pixels: Pixels | None) -> None:
    """What the network is."""
    spec = inspection.spec
    table.add_row("parameters", f"{inspection.parameters:,}")
    table.add_row("input", f"{' × '.join(map(str, spec.shape))}, in [0, 1]")
    table.add_row("classes", str(spec.classes))
    table.add_row("answer", inspection.output)
    table.add_row("normalisation", f"mean {list(spec.mean)}, std {list(spec.std)}")
    told = "nothing in the network tells: mean and std must be those of its training"
    if pixels:
        told = f"mean {pixels.mean:.2f}, std {pixels.std:.2f}, by layer {pixels.layer}"
    table.add_row("pixels it was trained on", told)
    kinds = ", ".join(f"{count} {kind}" for kind, count in inspection.kinds.items())
    told = f"{len(inspection.layers)} ({kinds})" if kinds else "none"
    table.add_row("BatchNorm layers", told)
    for name, channels in list(inspection.layers.items())[:MOST_LAYERS]:
        table.add_row("", f"{name}: {channels} channels")
    if len(inspection.layers) > MOST_LAYERS:
        table.add_row("", f"and {len(inspection.layers) - MOST_LAYERS} more")
    table.add_row("dead channels", str(inspection.dead_channels))
    table.add_row("weights SHA-256", inspection.weight_hash[:16] + "…")


def _add_notes(table: Table, notes: Mapping[str, Any]) -> None:
    """What the file says of itself; here it is only repeated."""
    if notes:
        table.add_section()
        table.add_row("its file says", "(not checked)")
    for key, value in notes.items():
        table.add_row(f"  {printable(key.replace('_', ' '))}", printable(_shorten(value)))


def _shorten(value: object, most: int = 5) -> str:
    """A note for a table: of a long list or mapping the first few."""
    if not isinstance(value, list | dict) or (isinstance(value, dict) and len(value) <= most):
        return str(value)
    parts = [f"{key}: {each}" for key, each in value.items()] if isinstance(value, dict) else value
    first = ", ".join(map(str, parts[:most]))
    if len(parts) <= most:
        return first
    return f"{first} and {len(value) - most} more"


def _find_possible(
    run: InspectRun, teacher: Classifier, inspection: Inspection
) -> dict[str, str | None]:
    """Every recipe, and why it can't make a set from this teacher; None where it can."""
    reasons: dict[str, str | None] = {}
    adversary = _usual_options(teacher, "").synthesis.adversary
    for name in RECIPES:
        reasons[name] = None
        if find_recipe(name).needs == "BatchNorm" and not inspection.layers:
            reasons[name] = "the network has no BatchNorm layer with running statistics"
            continue
        try:
            check_synthesis(teacher, SynthesisOptions(recipe=name, adversary=adversary), run)
        except EchosetError as error:
            reasons[name] = str(error)
    return reasons
