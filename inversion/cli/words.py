"""Short names that take words: `--teacher mnist`, `--loss hinton=1 at`, `score SET NAME=SET`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

# What a file of options never names, as --help. It has no public name, and nothing public does the
# same: an ordinary action that is called --teacher takes the whole group `teacher` of a file for
# its own value. This is the only place that knows it; tests/test_cli_words.py tells when it goes.
from jsonargparse._common import NonParsingAction

Unsaved = NonParsingAction


class Words(Unsaved):
    """A short name, of one word or several, that sets one key."""

    def __init__(
        self, key: str, given: dict[str, str], read: Callable[[Any], Any], **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.key = key
        self.given = given  # how each key was set: by which option, or by words alone
        self.read = read

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: Any,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Set the key to what the words say."""
        place = option_string or "words"
        before = self.given.get(self.key, place)
        if place != before and "words" in (place, before):
            message = f"name {self.key} in words or by an option, not both"
            raise argparse.ArgumentError(self, message)
        self.given[self.key] = place
        try:
            namespace[self.key] = self.read(values)
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from error


def read_losses(words: list[str]) -> dict[str, float | None]:
    """`hinton=1 at` as weights by name; a loss without a number has its published weight."""
    losses: dict[str, float | None] = {}
    for word in words:
        name, equals, weight = word.partition("=")
        if name in losses:
            raise ValueError(f"loss {name} is named twice")
        losses[name] = _read_weight(name, weight) if equals else None
    return losses


def _read_weight(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"loss {name}: '{text}' is not a number") from None


def read_sets(words: list[str]) -> dict[str, str]:
    """`SET NAME=SET …` as paths by name."""
    sets: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or "/" in name or Path(word).exists():
            name = name_set(word, sets)
            path = word
        if name in sets:
            raise ValueError(
                f"two sets would be called '{name}'; give one another name: NAME={path}"
            )
        sets[name] = path
    return sets


def name_set(path: str, taken: dict[str, str]) -> str:
    """What a set is called if nobody says: the last part of its path, and the part before it
    where the last one says too little.
    """
    place = Path(path)
    name = place.stem if place.suffix == ".npz" else place.name
    name = name or path
    says_little = name == "set" or name in taken
    if says_little and place.parent.name:
        return f"{place.parent.name}-{name}"
    return name


def read_model(word: str) -> str | None:
    """The name of a network; null for none."""
    return None if word == "null" else word


def read_number(word: str) -> int:
    """A whole number."""
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"'{word}' is not a whole number") from None


class Several(NamedTuple):
    """How words set a key."""

    metavar: str
    """What the help calls a word."""
    read: Callable[[Any], Any]
    """Makes the key's value of them."""
    nargs: str | None = "+"
    """How many words, in argparse's signs."""


MODEL = Several("MODEL", read_model, None)
"""A network, by one word."""
SEVERAL = {
    "distillation.loss": Several("NAME[=WEIGHT]", read_losses),
    "collection.short": Several("WAY", tuple, "*"),
    "shortage": Several("WAY", tuple, "*"),
    "sources": Several("SOURCE", tuple),
    "answers.per_image": Several("VIEWS", read_number, None),
}
"""Keys whose short name takes several words."""
AFTER_VERB = {
    "demo": ("teacher.model", Several("TEACHER", read_model, "?")),
    "inspect": ("teacher.model", Several("TEACHER", read_model, "?")),
    "synthesize": ("teacher.model", Several("TEACHER", read_model, "?")),
    "distill": ("set", Several("SET", str, "?")),
    "evaluate": ("model.model", Several("MODEL", read_model, "?")),
    "export-student": ("student.model", Several("STUDENT", read_model, "?")),
    "collect": ("sources", Several("SOURCE", tuple, "*")),
    "list": ("kinds", Several("KIND", tuple, "*")),
    "export": ("sets", Several("SET", tuple, "*")),
    "report": ("run", Several("RUN", str, "?")),
    "verify": ("set", Several("SET", str, "?")),
    "score": ("sets", Several("[NAME=]SET", read_sets, "*")),
}
"""Words that follow a verb without an option, and the key that they set."""
THEN = {"report": ("against", Several("RUN", str, "?"))}
"""A word that may follow these, and the key that it sets."""


def values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """What these give an option, each time that it stands there."""
    values = []
    for word, following in pairwise([*arguments, ""]):
        name, equals, value = word.partition("=")
        if name == option:
            values.append(value if equals else following)
    return values
