"""Says what is wrong with a command in plain words, and where help is."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

from inversion.cli.help import long_names, names_of
from inversion.cli.table import VERBS
from inversion.cli.words import values_of
from synthesis_kernels.errors import closest, suggest
from synthesis_kernels.terminal import plain

if TYPE_CHECKING:
    from jsonargparse import Namespace

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "tuple": "a list such as [1, 2]",
    "dict": "a mapping such as {name: value}",
    "NoneType": "null",
}
"""What Python's types are called."""
KEY = re.compile(r'Parser key "([^"]+)"')
EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: .*)?$", re.MULTILINE)
GOT = re.compile(r"(?:Got|Given) value: (.*)")
NO_VALUE = re.compile(r"argument (--[\w.]+)\S*: ignored explicit argument '(.*)'")

UNKNOWN_WORD = re.compile(r"unrecognized arguments: (.+)", re.S)
UNKNOWN_KEY = re.compile(
    r"(?:Group '([^']+)' does not accept option|Option) '([^']+)'(?: is not accepted)?$"
)
TORN = re.compile(r"Problems parsing config.*line (\d+), column", re.S)
PROBLEMS = ("did not find", "found", "could not find", "mapping values", "expected")
"""How YAML's reader begins to say what is wrong."""
NO_FILE = re.compile(r'Parser key "config": File does not exist: (.+)')
NO_WORD = re.compile(r"argument (?:\S+/)?(--[\w.-]+): expected (?:at least )?one argument")


def refuse(message: str, help_line: str) -> NoReturn:
    """Say what is wrong and where help is, and end with status 2."""
    print(f"error: {plain(message)}", file=sys.stderr)
    print(help_line, file=sys.stderr)
    sys.exit(2)


def name_in_full(message: str, group: str, parsed: Namespace) -> str:
    """A message about an option with that option's full name, `synthesis.batch` for `batch`.

    Options say what is wrong with them in the words of Python, where a group knows its own fields
    alone. A message that does not begin with the name of an option stays as it is.
    """
    name, _, rest = message.partition(" ")
    if not re.fullmatch(r"[a-z_.]+", name):
        return message
    levels = group.split(".")
    for depth in range(len(levels), -1, -1):
        key = ".".join([*levels[:depth], name])
        if key in parsed:
            return f"{key} {rest}"
    return message


def say_plainly(message: str, verb: str, arguments: Sequence[str]) -> str:
    """What jsonargparse says of a command, without Python's names, and with what was meant."""
    unknown = UNKNOWN_WORD.match(message)
    if unknown:
        return _say_unknown(unknown[1], verb, arguments)
    key = UNKNOWN_KEY.match(message)
    if key:
        name = ".".join(filter(None, key.groups()))
        hint = _meant(name, [option[2:] for option in long_names(verb)])
        return f"{_file_among(arguments)}there is no option {name}{hint}"
    torn = TORN.search(message)
    if torn:
        lines = [line.strip() for line in message.splitlines()]
        problem = next((line for line in lines if line.startswith(PROBLEMS)), "it can't be read")
        return f"{_file_among(arguments)}this is no YAML: line {torn[1]}: {problem}"
    message = NO_FILE.sub(r"--config: there is no file \1", message)
    message = NO_WORD.sub(r"\1 needs a value", message)
    return _say_value(message)


def _say_unknown(words: str, verb: str, arguments: Sequence[str]) -> str:
    """What no option, or no word after the verb, is; the first of them counts."""
    word = words.split()[0].partition("=")[0]
    options = [*names_of(verb).values(), *long_names(verb)]
    if word.startswith("-"):
        return f"{verb} has no option {word}{_meant(word, options) or _say_verbs(word)}"
    hint = ""
    for before, unknown in pairwise(["", *arguments]):
        if unknown.partition("=")[0] == word:
            hint = _meant(f"--{word}", options)
            if not hint and not before.startswith("-"):  # it may be an option's value
                hint = _meant(f"--{before}", options)
            break
    return f"{verb} does not know what to do with '{words}'{hint}"


def _say_verbs(word: str) -> str:
    """The verbs that have an option of this name."""
    verbs = [verb for verb in VERBS if word in {*names_of(verb).values(), *long_names(verb)}]
    if len(verbs) > 1:
        return f"; {', '.join(verbs[:-1])} and {verbs[-1]} have it"
    return "".join(f"; {verb} has it" for verb in verbs)


def _meant(word: str, options: list[str]) -> str:
    """The option that a misspelt one, or a part of its name, stands for."""
    if word in options:
        return f"; did you mean {word}?"
    group, _, inner = word.lstrip("-").rpartition(".")
    same = [option for option in options if option.lstrip("-").rpartition(".")[2] == inner]
    hint = suggest(word, options, 0.75)
    if hint and (group or not same):
        return hint
    if same:
        return f"; did you mean {' or '.join(same[:2])}?"
    inners = {option.rpartition(".")[2]: option for option in reversed(options)}
    close = closest(inner, inners, 0.75)
    return f"; did you mean {inners[close]}?" if close else ""


def _file_among(arguments: Sequence[str]) -> str:
    """The one file of options that these name, with a colon; nothing where there are several."""
    files = values_of("--config", arguments)
    return f"{files[0]}: " if len(files) == 1 else ""


def _say_value(message: str) -> str:
    """A value of the wrong type, without Python's names of types."""
    keys = KEY.findall(message)
    kinds = EXPECTED.findall(message)
    got = GOT.search(message)
    if not keys or not kinds or not got:
        return NO_VALUE.sub(r"\1 takes no value, got \2", KEY.sub(r"--\1", message))
    if len(keys) > 1:  # of an option inside a group that may be missing: the first is the option's
        kinds = kinds[:1]
    if got[1].startswith("NestedArg("):
        return f"{keys[0]} has no options of its own"
    wanted = " or ".join(_name_kind(kind) for kind in kinds)
    if re.fullmatch(r"[\d.e+-]+", got[1]):  # the usual mistake is a number without brackets
        wanted = wanted.replace("[1, 2]", f"[{got[1]}]")
    choices = [choice for kind in kinds for choice in _choices(kind)]
    return f"{'.'.join(keys)} must be {wanted}, got {got[1]}{suggest(got[1], choices, 0.75)}"


def _name_kind(kind: str) -> str:
    """A type in words, as jsonargparse prints it."""
    choices = _choices(kind)
    if choices:
        return f"one of {', '.join(choices)}"
    name = re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", kind)
    if name:
        return KINDS.get(name[1], name[1])
    return kind


def _choices(kind: str) -> list[str]:
    """The words that a type allows, where it is a choice of some."""
    choices = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    return [choice.strip("' ") for choice in choices[1].split(",")] if choices else []
