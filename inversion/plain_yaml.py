"""YAML as files of options hold it: a tree of plain values, of bounded size."""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

MODE = "echoset"
"""What jsonargparse calls this way of reading."""
MOST_NODES = 100_000
"""Values in a document, each counted as often as an alias repeats it."""
DEEPEST = 32
"""Levels of lists and mappings in one another."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: str) -> Any:
    """A document's values; what is no tree of plain ones is a YAMLError."""
    try:
        _measure(yaml.compose(text, Loader=LOADER), {})
        return get_loader("yaml")(text)
    except (ValueError, OverflowError, RecursionError) as error:
        # Of long numbers, impossible dates and the like.
        raise yaml.YAMLError(f"found what can't be read: {error!s:.60}") from error


def say_problem(error: yaml.YAMLError) -> str:
    """What is wrong, and in which line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}: {problem}" if mark else problem


def register() -> str:
    """Let jsonargparse's parsers read so; gives the mode to ask for."""
    set_loader(MODE, parse_yaml, exceptions=(yaml.YAMLError,))
    return MODE


def _measure(node: yaml.Node | None, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values lie in a node, aliases spelt out, and how deep."""
    if node is None:
        return 0, 0
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = (MOST_NODES, 0)  # of a node that holds itself
    if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
        raise _refusal("found a NUL character", node)
    parts = [_measure(part, known) for part in _parts(node)]
    count = 1 + sum(part[0] for part in parts)
    depth = 1 + max((part[1] for part in parts), default=0)
    if count > MOST_NODES:
        raise _refusal(f"found more than {MOST_NODES:,} values, or an alias of itself", node)
    if depth > DEEPEST:
        raise _refusal(f"found more than {DEEPEST} levels", node)
    known[id(node)] = (count, depth)
    return count, depth


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _refusal(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
