"""Refuses options of the wrong type, for those who write Python: a text for a number, say. No torch
here.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from numbers import Integral, Real
from os import PathLike
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from synthesis_kernels.errors import EchosetError, suggest

KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    NoneType: "None",
    tuple: "a tuple",
}
"""What types are called."""
LONGEST = 40
"""Characters of a wrong value that are shown."""


def require_types(options: object) -> None:
    """Refuse a field whose value is not of the type that its class names."""
    kind: Any = type(options)
    for name, hint in _hints_of(kind).items():
        value = getattr(options, name)
        if not _fits(value, hint):
            wanted = " or ".join(dict.fromkeys(_say(each) for each in _choices(hint)))
            shown = f"{value!r:.{LONGEST}}"
            raise EchosetError(f"{name} must be {wanted}, got {shown}{_meant(value, hint)}")


@cache
def _hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _choices(hint: Any) -> tuple[Any, ...]:
    """The types that a union joins."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    return any(_is_of(value, each) for each in _choices(hint))


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a type. Numbers of numpy's count, and paths as texts; what is in a
    mapping is for others to look at.
    """
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple | list)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str | PathLike)
    return get_origin(kind) is not None or kind is Any or isinstance(value, kind)


def _say(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    kind = get_origin(kind) or kind
    name: str = kind.__name__
    return f"{name}(…)" if dataclasses.is_dataclass(kind) else KINDS.get(kind, name)


def _meant(value: Any, hint: Any) -> str:
    """The word that a misspelt one stands for."""
    words: list[str] = []
    for kind in _choices(hint):
        if get_origin(kind) is Literal:
            words += get_args(kind)
    return suggest(value, words, 0.75) if isinstance(value, str) else ""
