"""Classes in a few words and rows, however many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def say_short(short: Mapping[str, int]) -> str:
    """As in `class 3 lacks 2, class 5 lacks 1 and 80 more classes some`."""
    named = [f"class {label} lacks {count:,}" for label, count in short.items()]
    told = ", ".join(named[:MOST_NAMED])
    more = len(named) - MOST_NAMED
    return f"{told} and {more:,} more classes some" if more > 0 else told


def class_rows(columns: Sequence[Sequence[int]]) -> list[tuple[str, ...]]:
    """A row a class, with its number; where these would be too many, all classes together, and the
    least and the most of one.
    """
    classes = len(columns[0])
    if classes <= MOST_ROWS:
        return [
            (str(label), *(str(column[label]) for column in columns)) for label in range(classes)
        ]
    return [
        (f"all {classes:,}", *(f"{sum(column):,}" for column in columns)),
        ("least of one", *(f"{min(column):,}" for column in columns)),
        ("most of one", *(f"{max(column):,}" for column in columns)),
    ]
