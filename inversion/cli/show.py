"""Tables, and JSON as the very last line."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from synthesis_kernels.terminal import plain

if TYPE_CHECKING:
    from inversion.cli.schema import Common


class PlainTable(Table):
    """A table of text that may come from files: no terminal obeys any of it."""

    def add_row(self, *cells: Any, **settings: Any) -> None:
        """Add a row of text."""
        super().add_row(*map(_plain, cells), **settings)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.title = _plain(self.title)
        self.caption = _plain(self.caption)
        return super().__rich_console__(console, options)


def _plain(cell: Any) -> Any:
    return plain(cell) if isinstance(cell, str) else cell


def show_table(table: Table) -> None:
    """Print a table."""
    Console(markup=False, emoji=False).print(table)


def new_table(title: str, *columns: str) -> Table:
    """An empty table with a title and named columns."""
    table = PlainTable(title=title, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(plain(column))
    return table


def rows_table(title: str, rows: list[tuple[str, ...]]) -> Table:
    """A table of these rows, of which the first names the columns."""
    table = new_table(title)
    for name in rows[0]:
        table.add_column(plain(name), no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def tell(run: Common, message: str) -> None:
    """A line beside the result, on standard error."""
    if not run.quiet:
        print(plain(message), file=sys.stderr)


def command_line() -> str:
    """The command that is running, as a shell would take it."""
    return shlex.join(["echoset", *sys.argv[1:]])


def finish(
    run: Common, table: Table | None, document: dict[str, Any], line: str | None = None
) -> int:
    """Show the table, then the JSON as the very last line."""
    if not run.quiet and table is not None:
        show_table(table)
    if not run.quiet and line:
        print(plain(line))
    if run.json:
        print(json.dumps(document))
    return 0
