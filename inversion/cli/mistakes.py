"""Says what is wrong with a command in plain words, and where help is."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, NoReturn

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


def refuse(message: str, help_line: str) -> NoReturn:
    """Say what is wrong and where help is, and end with status 2."""
    print(f"error: {message}", file=sys.stderr)
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


def say_plainly(message: str) -> str:
    """What jsonargparse says of a value of the wrong type, without Python's names of types."""
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
    return f"{'.'.join(keys)} must be {wanted}, got {got[1]}"


def _name_kind(kind: str) -> str:
    """A type in words, as jsonargparse prints it."""
    choices = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    if choices:
        return f"one of {choices[1].replace(chr(39), '')}"
    name = re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", kind)
    if name:
        return KINDS.get(name[1], name[1])
    return kind
