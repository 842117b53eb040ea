"""Which class of a network each folder of pictures is for."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch

from distill.data.images import Images
from distill.models.classifier import ModelSpec
from distill.names import folder_ending, known_names, printable, show_class, split_number
from synthesis_kernels.backend import say_once
from synthesis_kernels.errors import EchosetError

WORDNET = re.compile(r"n\d{8}")
"""A folder of ImageNet's: networks trained on it number the classes in the order of these."""


@dataclass(frozen=True)
class Match:
    """The classes of folders."""

    labels: list[int]
    """The class of each folder, in their order."""
    way: str
    """How they were found: by name, by number, or in the order of their names."""


def match_classes(data: Images, spec: ModelSpec, option: str = "names") -> Images:
    """The images with the network's own numbers as labels, where they lie in folders of classes;
    other images as they are. `option` is where names can be given, for the message.
    """
    if data.folders is None or data.labels is None:
        return data
    names = known_names(spec.notes.get("class_names"), spec.classes)
    match = match_folders(data.folders, spec.classes, names, data.name, option)
    told = f"{len(match.labels):,} of {spec.classes:,} classes, taken {match.way}"
    labels = torch.tensor(match.labels)[data.labels]
    return replace(data, labels=labels, folders=None, matched=told)


def match_folders(
    folders: Sequence[str],
    classes: int,
    names: Sequence[str] | None,
    where: str,
    option: str = "names",
) -> Match:
    """The class of each folder: by the classes' names, else by the numbers in the folders' own
    names, else, where classes have no names and there is a folder for each, or where folders are
    ImageNet's, in their order. All else would be a guess.
    """
    found = _by_name(folders, names or (), where)
    if all(label is not None for label in found):
        labels = [label for label in found if label is not None]
        return Match(_once(labels, folders, names, where), "by name")
    numbers = [split_number(folder, classes) for folder in folders]
    are_named = any(label is not None for label in found) or any(
        number and number[1] for number in numbers
    )
    if names and are_named:
        folder = folders[found.index(None)]
        raise EchosetError(
            f"{where}: the folder '{printable(folder)}' bears the name of no class; the nearest is "
            f"{_nearest(folder, names)}. Rename the folder, or take it away"
        )
    if all(numbers):
        labels = [number[0] for number in numbers if number]
        if labels != sorted(labels) and len(labels) == classes:
            say_once(
                f"{where}: folders are taken by number, and not in the order of their names, "
                f"{', '.join(folders[:3])}, …; if the network was trained in that order, say "
                f"{option} with such a folder"
            )
        return Match(_once(labels, folders, names, where), "by number")
    if len(folders) == classes and (not names or all(map(WORDNET.fullmatch, folders))):
        return Match(list(range(classes)), "in the order of their names")
    raise EchosetError(_say_unknown(folders, classes, names, where, option))


def _by_name(folders: Sequence[str], names: Sequence[str], where: str) -> list[int | None]:
    """The class that each folder is named for; None where it is named for none."""
    tables: list[tuple[Callable[[str], str], dict[str, set[int]]]] = [
        (str, _table([name] for name in names)),
        (str.casefold, _table([name.casefold()] for name in names)),
        (_plain, _table([_plain(name)] for name in names)),
        (_plain, _table(map(_parts, names))),
    ]

    def look_up(text: str) -> set[int]:
        for change, table in tables:
            if change(text) in table:
                return table[change(text)]
        return set()

    found: list[int | None] = []
    for folder in folders:
        labels = look_up(folder)
        number = split_number(folder, len(names)) if names else None
        if not labels and number and number[1]:
            labels = look_up(number[1])
            labels = labels & {number[0]} or labels
        if len(labels) > 1:
            raise EchosetError(_say_several(folder, sorted(labels), names, where))
        found.append(min(labels, default=None))
    return found


def _table(keys: Iterable[Iterable[str]]) -> dict[str, set[int]]:
    """The classes that each key stands for; `keys` are those of each class."""
    table = defaultdict(set)
    for label, some in enumerate(keys):
        for key in some:
            if key:
                table[key].add(label)
    return dict(table)


def _plain(name: str) -> str:
    """A name without what people write in several ways: capitals, blanks and signs."""
    composed = unicodedata.normalize("NFKC", name)  # some systems keep letter and accent apart
    return re.sub(r"[\W_]+", "_", composed.casefold()).strip("_")


def _parts(name: str) -> list[str]:
    """Each of several names of one class, `tench, Tinca tinca`, and that of its exported folder."""
    return [_plain(part) for part in (*name.split(", "), folder_ending(name))]


def _once(
    labels: list[int], folders: Sequence[str], names: Sequence[str] | None, where: str
) -> list[int]:
    """Refuse two folders for one class."""
    seen: dict[int, str] = {}
    for label, folder in zip(labels, folders, strict=True):
        if label in seen:
            raise EchosetError(
                f"{where}: the folders '{printable(seen[label])}' and '{printable(folder)}' are "
                f"both for class {show_class(label, names)}; put their pictures into one"
            )
        seen[label] = folder
    return labels


def _nearest(folder: str, names: Sequence[str]) -> str:
    """The class whose name is most like the folder's."""
    plain = [_plain(name) for name in names]
    close = get_close_matches(_plain(folder), plain, n=1, cutoff=0)
    return show_class(plain.index(close[0]), names)


def _say_several(folder: str, labels: list[int], names: Sequence[str], where: str) -> str:
    digits = len(str(len(names) - 1))
    classes = " and ".join(show_class(label, names) for label in labels)
    remedy = f"{labels[0]:0{digits}d}{folder_ending(names[labels[0]])}"
    return (
        f"{where}: the folder '{printable(folder)}' may be for the classes {classes}; put the "
        f"number before its name, as in '{remedy}'"
    )


def _say_unknown(
    folders: Sequence[str], classes: int, names: Sequence[str] | None, where: str, option: str
) -> str:
    """Why folders can't be told apart, and what to do."""
    first = printable(folders[0])
    if names and all(folder.isdecimal() for folder in folders):
        return (
            f"{where}: its {len(folders):,} folders are named by numbers, and classes are 0 to "
            f"{classes - 1}; rename them to these, or to the classes' names"
        )
    if names:
        return (
            f"{where}: none of its {len(folders):,} folders bears the name of a class; the nearest "
            f"to '{first}' is {_nearest(folders[0], names)}. Rename them, or say {option}"
        )
    beyond = [folder for folder in folders if folder.isdecimal() and int(folder) >= classes]
    if beyond and all(folder.isdecimal() for folder in folders):
        return (
            f"{where}: the folder '{beyond[0]}' is for no class; the network knows 0 to "
            f"{classes - 1}"
        )
    return (
        f"{where} has {len(folders):,} folders of classes ('{first}', …), and the network knows "
        f"{classes:,} classes without names. Say {option} with a file of their names, one a line, "
        f"or name the folders by number, 0 to {classes - 1}"
    )
