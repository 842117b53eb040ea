"""Presets: options that go together, one YAML file each. No torch here.

A verb takes of a preset what it knows. What a user gives, in a file or as an option, wins over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from distill.tasks import DENSE

PresetName = Literal["digits", "photos", "large", "maps", "dfad", "fast", "none"]
"""Files of this folder, and none: plain defaults."""


def read_preset(name: str) -> dict[str, Any]:
    """A preset's options by their whole names, such as `synthesis.calls`. A file may name another
    preset, whose options it changes.
    """
    import yaml

    if name == "none":
        return {}
    text = Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")
    options = yaml.safe_load(text)
    below = read_preset(options.pop("preset", "none"))
    return below | dict(_flat(options))


def _flat(options: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        key = f"{group}{name}"
        # Losses are one option: a mapping of names to weights.
        if isinstance(value, dict) and key != "distillation.loss":
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


LARGE = 96
"""Side from which the other presets' batches take more memory than many machines have."""


def students_for(task: str) -> dict[str, Any]:
    """The options that name students, where the usual ones can't do the task."""
    if task != DENSE:
        return {}
    return {key: name for key, name in read_preset("maps").items() if key.endswith("student.model")}


def for_recipe(recipe: str, task: str) -> str | None:
    """The preset that measures such a recipe at this task, if there is one."""
    return "dfad" if (recipe, task) == ("adversarial", DENSE) else None


def choose(task: str, channels: int, side: int, notes: Mapping[str, Any]) -> tuple[str, str]:
    """The preset that suits a teacher's task and images, and why."""
    if task == DENSE:  # its students answer with maps
        return "maps", "the teacher answers with a class for each pixel"
    if side >= LARGE and channels == 3:  # its student takes colour images
        return "large", f"the teacher takes images of {side} pixels along a side"
    views = notes.get("views")
    if isinstance(views, dict):
        if views.get("flip"):
            return "photos", "the teacher's file says that its training images were mirrored"
        return "digits", "the teacher's file says that its training images were not mirrored"
    if channels == 1:
        return "digits", "the teacher takes grey images"
    return "photos", "the teacher takes colour images"
