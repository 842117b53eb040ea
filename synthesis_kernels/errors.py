"""The exception that the whole project raises for a mistake the user can mend."""

from collections.abc import Iterable


class EchosetError(Exception):
    """Says what is wrong (the layer, shape, key or file) and what to do about it."""


class TrustError(EchosetError):
    """Something would run code that a file names, and nobody has said that this file is trusted."""


def closest(name: str, names: Iterable[str], likeness: float = 0.6) -> str | None:
    """The one of the names that is most like it, if one is so much like it."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(names), n=1, cutoff=likeness)
    return close[0] if close else None


def suggest(name: str, names: Iterable[str], likeness: float = 0.6) -> str:
    """The end of a message about a name that is none: the one that was meant, if one is so much
    like it.
    """
    close = closest(name, names, likeness)
    return f"; did you mean {close}?" if close else ""


def reason_of(error: Exception) -> str:
    """The first line of another library's message, or the error's class where there is none."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
