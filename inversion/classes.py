"""Classes in a few words and rows, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.names import show_class

if TYPE_CHECKING:
    from distill.sets.transfer_set import TransferSet

MOST_ROWS = 20
"""Classes that a table has a row for; of more there are only all, least and most."""
MOST_NAMED = 10
"""Classes that a sentence names."""


def say_spread(counts: Sequence[int]) -> str:
    """As in `3 to 200 a class, 812 classes empty`."""
    least = min(counts)
    most = max(counts)
    told = f"{least:,} to {most:,} a class" if least != most else f"{least:,} a class"
    empty = sum(count == 0 for count in counts)
    if not empty:
        return told
    return f"{told}, {empty:,} class{'es' if empty > 1 else ''} empty"


def say_short(short: Mapping[str, int], names: Sequence[str] | None = None) -> str:
    """As in `class 3 (cat) lacks 2, class 5 (dog) lacks 1 and 80 more classes some`."""
    named = []
    for label, count in short.items():
        shown = show_class(int(label), names) if label.isdecimal() else label
        named.append(f"class {shown} lacks {count:,}")
    told = ", ".join(named[:MOST_NAMED])
    more = len(named) - MOST_NAMED
    return f"{told} and {more:,} more classes some" if more > 0 else told


def say_imbalance(folder: object, transfer_set: TransferSet) -> str:
    """What a set lacks, after the folder that it lies in; empty where it lacks nothing."""
    short = transfer_set.manifest["short"]
    if not short:
        return ""
    unit = "" if transfer_set.task.exact else "in images' worth of pixels, "
    return f"{folder} is not balanced: {unit}{say_short(short, transfer_set.class_names)}"


def say_filled(manifest: Mapping[str, Any]) -> str:
    """As in `12 images of short classes were made by push`, of a set's manifest; empty where none
    were.
    """
    made = {way: sum(rows) for way, rows in manifest.get("filled", {}).items() if sum(rows)}
    if not made:
        return ""
    ways = " and ".join(f"{way} {count:,}" if len(made) > 1 else way for way, count in made.items())
    count = sum(made.values())
    if count == 1:
        return f"1 image of a short class was made by {ways}"
    return f"{count:,} images of short classes were made by {ways}"


def class_rows(
    columns: Sequence[Sequence[int]], names: Sequence[str] | None = None, shares: bool = False
) -> list[tuple[str, ...]]:
    """A row a class, with its number and, where it has one, its name; where these would be too
    many, all classes together, and the least and the most of one. With `shares`, what stands there
    are those of the column's sum.
    """
    classes = len(columns[0])
    if classes <= MOST_ROWS:
        return [
            (
                show_class(label, names),
                *(_tell(column[label], column, shares) for column in columns),
            )
            for label in range(classes)
        ]
    takes: dict[str, Callable[[Sequence[int]], int]] = {
        f"all {classes:,}": sum,
        "least of one": min,
        "most of one": max,
    }
    told = []
    for name, take in takes.items():
        cells = (_tell(take(column), column, shares, grouped=True) for column in columns)
        told.append((name, *cells))
    return told


def _tell(count: int, column: Sequence[int], shares: bool, grouped: bool = False) -> str:
    if shares:
        return f"{count / max(sum(column), 1):.1%}"
    return f"{count:,}" if grouped else str(count)
