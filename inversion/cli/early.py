"""Mistakes in what is named, found before torch is imported: that takes seconds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill.options import StudentOptions
from distill.presence import looks_like_file, require_there
from distill.zoo_names import USUAL_NETWORKS
from inversion.cli.lists import BUNDLED, ZOO
from inversion.options import TeacherOptions
from inversion.sources import require_source
from synthesis_kernels.errors import EchosetError

PLACES = {"set": "data", "data": "data", "original": "data", "beside": "data", "run": "run"}
"""Options that say where something is, and what it is."""
YAML = (".yaml", ".yml")
"""Endings of a file of options."""
LIKENESS = 0.75
"""Of two names, so that one is taken for the other."""
REGISTERED = r"@register_model\([\s\S]*?\ndef (\w+)\("
"""A network in torchvision's source."""


def check_names(options: Any) -> None:
    """Refuse sets, images, files and networks that are not there."""
    for name, kind in PLACES.items():
        _require_place(getattr(options, name, None), kind)
    if hasattr(options, "run"):  # what a report sets beside it; a bench's is a file
        _require_place(getattr(options, "against", None), "run")
    sets = getattr(options, "sets", ())
    for place in sets.values() if isinstance(sets, dict) else sets:
        _require_place(place, "data")
    for address in getattr(options, "sources", ()):
        require_source(address)
    for part in _parts_of(options):
        if isinstance(part, TeacherOptions | StudentOptions):
            _check_network(part)


def _parts_of(options: Any) -> Iterator[Any]:
    """Options within options."""
    for each in fields(options):
        part = getattr(options, each.name)
        if is_dataclass(part):
            yield part
            yield from _parts_of(part)


def _require_place(place: Any, kind: str) -> None:
    """Refuse a path that leads nowhere; what is no path is somebody else's to check."""
    if isinstance(place, str) and not place.startswith("torchvision:"):
        require_there(place, kind)


def _check_network(options: TeacherOptions | StudentOptions) -> None:
    """Refuse files that are not there; what may be somebody's own is left to others."""
    name = options.model
    weights = options.weights
    if weights and (looks_like_file(weights) or weights.endswith(".safetensors")):
        require_there(weights, "weights file")
    if ":" in name or name.endswith(".py") or Path(name).exists():
        return
    if name.endswith(YAML):
        require_there(name, "file of a teacher's options")
    if looks_like_file(name) or name.endswith(".safetensors"):
        require_there(name, "model file")
    if "." not in name:
        _check_plain_name(name, [*BUNDLED] if isinstance(options, TeacherOptions) else [])


def _check_plain_name(name: str, others: list[str]) -> None:
    """Refuse a name that no network has, and one is much like. Where none is, the message lists
    what is known, and where timm is installed its names count, too: that needs everything imported.
    """
    if any(re.fullmatch(re.sub(r"<\w+>", r"\\d+", form), name) for form in ZOO):
        return
    names = [*USUAL_NETWORKS, *(form for form in ZOO if "<" not in form), *others]
    if not find_spec("timm"):
        names += torchvision_names()
    close = get_close_matches(name, names, n=3, cutoff=LIKENESS)
    if close and name not in names:
        raise EchosetError(f"no model named '{name}'. Did you mean {' or '.join(close)}?")


def torchvision_names() -> list[str]:
    """Torchvision's networks, by its source: an import takes seconds."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return []
    models = Path(spec.origin).parent / "models"
    names = []
    for file in sorted([*models.glob("*.py"), *models.glob("segmentation/*.py")]):
        names += re.findall(REGISTERED, file.read_text(encoding="utf-8"))
    return names
