"""The one exception the whole project raises for a mistake the user can mend."""

from collections.abc import Iterable


class EchosetError(Exception):
    """Says what is wrong (the layer, shape, key or file) and what to do about it."""


def suggest(name: str, names: Iterable[str]) -> str:
    """The end of a message about a name that is none: the one that was meant, if one is like it."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""
