"""Files of options looked over before the grammar reads them, which would pass over groups that
are none, and import a class that a file names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml

from distill.plain_files import read_text, refuse_classes
from inversion.cli.help import group_of, names_of, options_of
from inversion.cli.words import values_of
from inversion.plain_yaml import parse_yaml, say_problem
from synthesis_kernels.errors import EchosetError


def check_files(verb: str, arguments: Sequence[str]) -> None:
    """Refuse what is no tree of a verb's options, in files and where a group is given whole."""
    groups = dict(_groups(options_of(verb)))
    for value in values_of("--config", arguments):
        is_file = _is_file(value)
        text = read_text(Path(value)) if is_file else value
        _check(text, groups, f"{value}: " if is_file else "--config: ")
    taken = names_of(verb).values()  # --teacher names a model, and no group
    for key in groups:
        if f"--{key}" in taken:
            continue
        for value in values_of(f"--{key}", arguments):
            _check(value, groups, f"--{key}: ", key)


def _groups(kind: type, above: str = "") -> Iterator[tuple[str, bool]]:
    """Every group of options below a dataclass, and whether it may be null."""
    for name, hint in get_type_hints(kind).items():
        inner = group_of(hint)
        if inner is not None:
            yield f"{above}{name}", NoneType in get_args(hint)
            yield from _groups(inner, f"{above}{name}.")


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # too long for a path
        return False


def _check(text: str, groups: dict[str, bool], where: str, key: str = "") -> None:
    try:
        content = parse_yaml(text)
    except yaml.YAMLError as error:
        raise EchosetError(f"{where}this is no YAML: {say_problem(error)}") from error
    if text == content and not key:  # the path of no file: the grammar says so
        return
    refuse_classes(content, where.removesuffix(": "))
    _check_group(content, groups, where, key)


def _check_group(content: Any, groups: dict[str, bool], where: str, key: str) -> None:
    """Refuse anything but options by their names, here and in the groups below."""
    if not isinstance(content, dict):
        told = "nothing" if content is None else f"{content!r:.40}"
        name = f"{key} is a group of options" if key else "it must hold options"
        raise EchosetError(f"{where}{name}, each by its name, as in 'seed: 3', and got {told}")
    if content.get("config") is not None and not key:
        raise EchosetError(f"{where}a file of options names no other one; give each by --config")
    for name, value in content.items():
        full = f"{key}.{name}" if key else str(name)
        may_lack = value is None and groups.get(full, False)
        if full in groups and not may_lack:
            _check_group(value, groups, where, full)
