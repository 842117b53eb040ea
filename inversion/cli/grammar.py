"""Builds the parser of a verb from its dataclass. The grammar is jsonargparse's own."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, NoReturn, get_args, get_type_hints

import jsonargparse
from jsonargparse._common import NonParsingAction  # what a file of options never names

from distill.methods import METHODS
from inversion.cli.help import EVERYTHING, default_of, group_of, names_of, options_of, read_docs
from inversion.cli.table import VERBS
from synthesis_kernels.errors import EchosetError


class Words(NonParsingAction):
    """A short name, of one word or several, that sets one key: `--loss hinton=1 at`."""

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
        del parser
        place = option_string or "words"
        if (
            "words" in (place, self.given.get(self.key))
            and self.given.get(self.key, place) != place
        ):
            raise argparse.ArgumentError(
                self, f"name {self.key} in words or by an option, not both"
            )
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


class Several(NamedTuple):
    """A key that several words set: their name in the help, how they are read, how many."""

    metavar: str
    read: Callable[[Any], Any]
    count: str | None = "+"


SEVERAL = {
    "distillation.loss": Several("NAME[=WEIGHT]", read_losses),
    "collection.short": Several("WAY", tuple, "*"),
    "sources": Several("SOURCE", tuple),
}
"""Keys whose short name takes several words."""

WORDS = {
    "collect": ("sources", Several("SOURCE", tuple, "*")),
    "export": ("sets", Several("SET", tuple, "*")),
    "score": ("sets", Several("[NAME=]SET", read_sets, "*")),
}
"""Words that follow a verb without an option, and the key that they set."""


def parse(verb: str, arguments: list[str]) -> Any:
    """A verb's options from its arguments; a mistake ends the process with status 2."""
    try:
        parser = build_parser(verb, explain=EVERYTHING in arguments)
        parsed = parser.parse_args(arguments)
        return _build_options(parser, options_of(verb), parsed)
    except (argparse.ArgumentError, EchosetError) as error:
        refuse(verb, str(error))


def refuse(verb: str, message: str) -> NoReturn:
    """Say what is wrong with a command, and end with status 2."""
    message = re.sub(r'Parser key "([^"]+)"', r"--\1", message)
    print(f"echoset {verb}: {message}", file=sys.stderr)
    print(f"echoset {verb} --help shows its options", file=sys.stderr)
    sys.exit(2)


def build_parser(verb: str, explain: bool = False) -> jsonargparse.ArgumentParser:
    """The parser of a verb, which raises ArgumentError at a mistake. To explain every option it
    has to read all docstrings, which takes a second.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=explain)
    parser = jsonargparse.ArgumentParser(
        prog=f"echoset {verb}",
        description=VERBS[verb].sentence,
        conflict_handler="resolve",  # --teacher names a model, not a file of options
        exit_on_error=False,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", EVERYTHING, action="help", help="Show every option.")
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file of these options; of files and options, what comes later wins.",
    )
    if "distillation" in {field.name for field in dataclasses.fields(options_of(verb))}:
        parser.epilog = f"Losses: {', '.join(METHODS)}."
    given: dict[str, str] = {}
    if verb in WORDS:
        key, several = WORDS[verb]
        _add_several(parser, "words", key, several, given)
    names = names_of(verb)
    kind = options_of(verb)
    hints = get_type_hints(kind)
    docs = read_docs(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        group = group_of(hint)
        if group is not None:
            _add_group(parser, field, group, is_optional(hint), names, given)
        elif hint is bool:
            switch = jsonargparse.ActionYesNo(no_prefix="no-")
            parser.add_argument(
                f"--{field.name}", action=switch, default=field.default, help=docs[field.name]
            )
        else:
            parser.add_argument(
                f"--{field.name}", type=hint, default=default_of(field), help=docs[field.name]
            )
            if field.name in SEVERAL:
                _add_several(parser, names[field.name], field.name, SEVERAL[field.name], given)
    return parser


def is_optional(hint: Any) -> bool:
    """Whether a type has room for None."""
    return NoneType in get_args(hint)


def _add_group(
    parser: jsonargparse.ArgumentParser,
    field: dataclasses.Field,
    kind: type,
    optional: bool,
    names: dict[str, str],
    given: dict[str, str],
) -> None:
    """The options of a dataclass inside the verb's; some have a short name beside their own."""
    default = kind() if optional else default_of(field)
    short = {
        inner.name: names[f"{field.name}.{inner.name}"]
        for inner in dataclasses.fields(kind)
        if f"{field.name}.{inner.name}" in names
    }
    own = {name for name in short if f"{field.name}.{name}" not in SEVERAL}
    usual = dataclasses.asdict(kind())
    changed = {
        name: value
        for name, value in dataclasses.asdict(default).items()
        if name not in own and value != usual[name]
    }
    parser.add_class_arguments(
        kind, field.name, skip=own, default=changed, instantiate=not optional
    )
    hints = get_type_hints(kind)
    docs = read_docs(kind)
    for name, option in short.items():
        key = f"{field.name}.{name}"
        if key in SEVERAL:
            _add_several(parser, option, key, SEVERAL[key], given)
        elif name == "model":
            _add_several(parser, option, key, Several("MODEL", _read_model, None), given)
        if name in own:
            several_names = [f"--{key}"] if name == "model" else [f"--{key}", option]
            parser.add_argument(
                *several_names,
                type=hints[name] | None if optional else hints[name],
                default=None if optional else getattr(default, name),
                help=docs[name],
            )


def _read_model(word: str) -> str | None:
    return None if word == "null" else word


def _add_several(
    parser: jsonargparse.ArgumentParser,
    name: str,
    key: str,
    several: Several,
    given: dict[str, str],
) -> None:
    """An option, or the words after the verb, that set a key by several words."""
    place = {"dest": argparse.SUPPRESS} if name.startswith("-") else {}
    parser.add_argument(
        name,
        action=Words,
        key=key,
        given=given,
        read=several.read,
        nargs=several.count,
        metavar=several.metavar,
        default=argparse.SUPPRESS,
        help=f"Short for --{key}; the words stand together.",
        **place,
    )


def _build_options(parser: jsonargparse.ArgumentParser, kind: type, parsed: Any) -> Any:
    """The verb's frozen dataclass."""
    values = vars(parser.instantiate(parsed))
    options = {field.name: values[field.name] for field in dataclasses.fields(kind)}
    for name, hint in get_type_hints(kind).items():
        group = group_of(hint)
        if group is not None and is_optional(hint):
            options[name] = _build_optional(group, options[name])
    return kind(**options)


def _build_optional(kind: type, parsed: Any) -> Any:
    """A dataclass that is there if any of its options was given."""
    given = {} if parsed is None else dict(vars(parsed))
    if given.get("model") is None:
        given.pop("model", None)
    options = kind(**given)
    if "model" not in given and options == kind():
        return None
    return options
