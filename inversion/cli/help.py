"""The short help of a verb, made from the docstrings of its options without building a parser."""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

from distill.brief import default_of
from distill.methods import METHODS
from inversion.cli import schema
from inversion.cli.table import VERBS, short_names

EVERYTHING = "all"
"""After --help, it asks for every option."""
WIDTH = 100


def options_of(verb: str) -> type[schema.Common]:
    """The dataclass of a verb's options."""
    kind: type[schema.Common] = getattr(schema, f"{verb.title().replace('-', '')}Run")
    return kind


def group_of(hint: Any) -> type | None:
    """The dataclass that a field of this type holds, if it holds one."""
    for kind in get_args(hint) or (hint,):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return kind
    return None


def names_of(verb: str) -> dict[str, str]:
    """A verb's short names: key to option."""
    keys = []
    for name, hint in get_type_hints(options_of(verb)).items():
        keys.append(name)
        group = group_of(hint)
        if group is not None:
            keys += [f"{name}.{field.name}" for field in dataclasses.fields(group)]
    return short_names(keys)


def long_names(verb: str) -> list[str]:
    """Every option of a verb by its whole name: the verb's own, then those in groups."""
    keys = sorted(_keys_of(options_of(verb)), key=lambda key: key.count("."))
    return ["--help", "--config", "--print_config", *(f"--{key}" for key in keys)]


def _keys_of(kind: type, group: str = "") -> Iterator[str]:
    """The keys of a dataclass and of those inside it."""
    for name, hint in get_type_hints(kind).items():
        yield f"{group}{name}"
        inner = group_of(hint)
        if inner is not None:
            yield from _keys_of(inner, f"{group}{name}.")


def read_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of its bases."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        docs |= _docs_of_module(base.__module__).get(base.__name__, {})
    return docs


@cache
def _docs_of_module(name: str) -> dict[str, dict[str, str]]:
    """Docstrings of fields by class."""
    source = getattr(sys.modules[name], "__file__", None)
    if source is None:
        return {}
    tree = ast.parse(Path(source).read_text(encoding="utf-8"))
    return {node.name: _docs_of_class(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _docs_of_class(node: ast.ClassDef) -> dict[str, str]:
    docs = {}
    for field, following in pairwise(node.body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = str(following.value.value)
            docs[field.target.id] = re.sub(r"\s+", " ", text).strip()
    return docs


def describe(verb: str) -> str:
    """The help of a verb: what it does, and the options that matter first."""
    about = VERBS[verb]
    names = names_of(verb)
    words = f" {about.words}" if about.words else ""
    lines = [f"usage: echoset {verb}{words} [options]", "", _sentence(about.sentence), ""]
    rows = [_describe_option(options_of(verb), key, names) for key in about.options.split()]
    column = max(len(name) for name, _ in rows) + 4
    for name, text in rows:
        lines += _wrap(f"  {name}".ljust(column), text)
    if "distillation.loss" in about.options.split():
        lines += ["", *_wrap("Losses: ", f"{', '.join(METHODS)}.")]
    ending = (
        f"echoset {verb} --help {EVERYTHING} shows every option. --config FILE.yaml reads them "
        "from a file; of a file and options, what comes later wins. --print_config writes one."
    )
    lines += ["", *_wrap("", ending)]
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _wrap(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _describe_option(kind: type, key: str, names: dict[str, str]) -> tuple[str, str]:
    """An option's name, and its first sentence with its default."""
    name, _, inner = key.partition(".")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    default = default_of(fields[name])
    text = read_docs(kind)[name]
    group = group_of(get_type_hints(kind)[name])
    if inner and group is not None:
        if inner != "model":
            text = read_docs(group)[inner]
        default = getattr(default, inner, None)
    first = re.split(r"(?<=\.) (?=[A-Z(-])", text)[0]
    return names.get(key, f"--{key}"), f"{first}{_say_default(default)}"


def _say_default(value: Any) -> str:
    """The default in brackets, unless it is nothing, or off."""
    if value is None or value is False or value in ((), {}):
        return ""
    if isinstance(value, tuple):
        return f" [{' '.join(map(str, value))}]"
    if isinstance(value, dict):
        return f" [{' '.join(f'{name}={entry:g}' for name, entry in value.items())}]"
    return f" [{value}]"
