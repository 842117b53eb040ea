"""List what there is to choose from. Neither torch nor rich is imported here."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import TYPE_CHECKING

from inversion.cli.lists import LISTS, Rows

if TYPE_CHECKING:
    from inversion.cli.schema import ListRun

WIDEST = 100


def read(arguments: list[str]) -> ListRun | None:
    """The options of a command that is lists' names alone, and --json; None of any other."""
    from inversion.cli.schema import ListRun

    kinds = [word for word in arguments if word != "--json"]
    if not all(kind in LISTS for kind in kinds):
        return None
    return ListRun(kinds=tuple(kinds), json="--json" in arguments)


def execute(run: ListRun) -> int:
    """Print the lists that are asked for, or which lists there are."""
    tables = {kind: LISTS[kind]() for kind in run.kinds}
    if not run.kinds:
        tables = {"lists": {kind: make.__doc__ or "" for kind, make in LISTS.items()}}
    if not run.quiet:
        print("\n\n".join(_show(kind, rows) for kind, rows in tables.items()))
        if not run.kinds:
            print("\nechoset list NAME shows one")
    if run.json:
        print(json.dumps(tables))
    return 0


def _show(kind: str, rows: Rows) -> str:
    """A table of names and sentences, as wide as the terminal."""
    if not rows:
        return f"{kind}: there are none"
    width = min(shutil.get_terminal_size().columns, WIDEST)
    column = max(map(len, rows)) + 4
    lines = [kind]
    for name, text in rows.items():
        lines += textwrap.wrap(
            text,
            max(width, column + 30),
            initial_indent=f"  {name}".ljust(column),
            subsequent_indent=" " * column,
        )
    return "\n".join(lines)
