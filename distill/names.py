"""Names of classes: read, made safe for a terminal and for a file system, and shown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from distill.models.classifier import ModelSpec

LONGEST_FILE = 16 * 2**20
"""Bytes of a file of names."""
LONGEST_SHOWN = 40
"""Letters of a name in a table or a sentence."""
LONGEST_FOLDER = 60
"""Letters of a name in that of a folder."""
NUMBERED = re.compile(r"([0-9]{1,7})(?:-(.*))?", re.DOTALL)
"""A folder named for a class by its number, as an export of pictures names it."""


def printable(text: str) -> str:
    """The text in one line, without letters that a terminal would obey."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(shown.split())


def known_names(given: Any, classes: int) -> tuple[str, ...] | None:
    """A file's names of `classes` classes; None where they are no such names."""
    if not isinstance(given, list | tuple) or len(given) != classes:
        return None
    if not all(isinstance(name, str) for name in given):
        return None
    if all(name == f"LABEL_{label}" for label, name in enumerate(given)):  # Hugging Face's for none
        return None
    return tuple(printable(name) for name in given)


def show_class(label: int, names: Sequence[str] | None) -> str:
    """A class by its number and, where it has one, its name, as in `3 (cat)`."""
    name = names[label] if names and 0 <= label < len(names) else ""
    if name.isdecimal() and int(name) == label:
        return str(label)
    if len(name) > LONGEST_SHOWN:
        name = f"{name[: LONGEST_SHOWN - 1]}…"
    return f"{label} ({name})" if name else str(label)


def name_classes(spec: ModelSpec, names: Sequence[str]) -> ModelSpec:
    """The spec with names for its classes, one each."""
    if len(names) != spec.classes:
        raise EchosetError(
            f"{len(names):,} names ({names[0]} to {names[-1]}) for the {spec.classes:,} classes of "
            f"{spec.model}; give one a class, in the order of its answers"
        )
    return replace(spec, notes={**spec.notes, "class_names": list(names)})


def folder_ending(name: str) -> str:
    """A name as the end of a folder's: `-hot_dog`; empty where nothing of the name is left."""
    letters = [letter if letter.isalnum() or letter in "+-." else "_" for letter in name]
    kept = re.sub("_+", "_", "".join(letters))[:LONGEST_FOLDER].strip("_.-")
    return f"-{kept}" if kept else ""


def split_number(folder: str, classes: int) -> tuple[int, str] | None:
    """The number and the name in `3`, `03` or `03-cat`; None for a folder without such a number.
    Before a name it has as many digits as an export gives it.
    """
    found = NUMBERED.fullmatch(folder)
    if not found or int(found[1]) >= classes:
        return None
    if found[2] is not None and len(found[1]) != len(str(classes - 1)):
        return None
    return int(found[1]), found[2] or ""


def read_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Names in the order of their classes: given themselves, with commas between, or read from a
    file (a name a line, or JSON) or from the folders in a folder, in the order of their names.
    """
    if not isinstance(given, str):
        return _checked(given, "names")
    path = Path(given)
    if given.strip() and _exists(path):
        names = _of_folder(path) if path.is_dir() else _of_file(path)
        return _checked(names, f"names {printable(given)}")
    if "," not in given:
        raise EchosetError(
            f"names '{printable(given)}': no such file or folder; give a file with a name a line, "
            "JSON, a folder with one folder per class, or the names with commas between"
        )
    return _checked([name.strip() for name in given.split(",")], "names")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, as many names are
        return False


def _checked(names: Sequence[Any], where: str) -> tuple[str, ...]:
    if len(names) < 2:
        raise EchosetError(f"{where}: {len(names)} names, and a network has two classes or more")
    cleaned = []
    for number, name in enumerate(names):
        text = printable(name) if isinstance(name, str) else ""
        if not text:
            raise EchosetError(f"{where}: class {number} has no name; every class needs one")
        cleaned.append(text)
    return tuple(cleaned)


def _of_folder(path: Path) -> list[str]:
    """The folders' names, in the order that ImageFolder gives them; of a data set with splits those
    of its train split.
    """
    root = path / "train" if (path / "train").is_dir() else path
    folders = [entry.name for entry in root.iterdir() if entry.is_dir()]
    return names_of_folders(sorted(name for name in folders if not name.startswith(".")))


def names_of_folders(folders: Sequence[str]) -> list[str]:
    """The names of classes that have these folders, in this order."""
    parts = [split_number(name, len(folders)) for name in folders]
    # As exported: the numbers are no part of the names.
    if parts and all(part and part[1] and part[0] == at for at, part in enumerate(parts)):
        return [part[1] for part in parts if part]
    return list(folders)


def _of_file(path: Path) -> list[Any]:
    where = f"names {printable(str(path))}"
    if not path.is_file():
        raise EchosetError(f"{where} is neither a file nor a folder")
    if path.stat().st_size > LONGEST_FILE:
        raise EchosetError(f"{where} is too large to be a list of names")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EchosetError(f"{where} is no text in UTF-8, with a name a line") from error
    if path.suffix == ".json" or text.lstrip().startswith(("[", "{")):
        return _of_json(text, where)
    return text.rstrip().splitlines()


def _of_json(text: str, where: str) -> list[Any]:
    """A list of names, or names by number, or numbers by name."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EchosetError(f"{where} is not readable JSON: {error}") from error
    if isinstance(told, list):
        return told
    if not isinstance(told, dict):
        raise EchosetError(f"{where} is neither a JSON list of names nor names by number")
    return _by_number(told, where)


def _by_number(told: Mapping[str, Any], where: str) -> list[Any]:
    """The values of `{"0": "cat", "1": "dog"}`, or the keys of `{"cat": 0, "dog": 1}`."""
    if told and all(type(number) is int for number in told.values()):
        told = {str(number): name for name, number in told.items()}
    missing = [number for number in range(len(told)) if str(number) not in told]
    if missing:
        raise EchosetError(
            f"{where} gives {len(told)} names and none for class {missing[0]}; the numbers must "
            f"run from 0 to {len(told) - 1}"
        )
    return [told[str(number)] for number in range(len(told))]
