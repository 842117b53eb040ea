"""Text files as trees of plain values, whoever wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.limits import MEGABYTE, MOST_TEXT
from synthesis_kernels.errors import EchosetError

DEEPEST = 64
"""Levels of lists and mappings in one another."""


def read_text(path: Path) -> str:
    """A file's text in UTF-8."""
    if not path.is_file():
        raise EchosetError(f"no file at {path}")
    size = path.stat().st_size
    if size > MOST_TEXT:
        raise EchosetError(
            f"{path} has {size / MEGABYTE:,.0f} MB; of a file of text at most "
            f"{MOST_TEXT // MEGABYTE} MB are read"
        )
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EchosetError(f"{path} is no text in UTF-8: {error}") from error


def read_json(path: Path) -> Any:
    """A JSON document."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """A JSON document; `where` names it for the message."""
    try:
        content = json.loads(text)
        require_shallow(content)
    except (ValueError, RecursionError) as error:
        raise EchosetError(f"{where} is not readable JSON: {error}") from error
    return content


def require_shallow(content: object, levels: int = DEEPEST) -> None:
    """Refuse, by a ValueError, what is nested too deep for those who walk it."""
    if not isinstance(content, dict | list):
        return
    if levels == 0:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    for value in content.values() if isinstance(content, dict) else content:
        require_shallow(value, levels - 1)


def refuse_classes(arguments: object, where: str) -> None:
    """Refuse a mapping that names a class to be made: jsonargparse would import it."""
    if isinstance(arguments, list | tuple):
        for value in arguments:
            refuse_classes(value, where)
    if not isinstance(arguments, Mapping):
        return
    if "class_path" in arguments:
        raise EchosetError(
            f"{where}: class_path names code, and none is run by that name. Give numbers, words, "
            "lists and mappings alone, or a network's import path as the model"
        )
    for value in arguments.values():
        refuse_classes(value, where)
