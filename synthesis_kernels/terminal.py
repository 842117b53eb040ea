"""Text as a terminal may be given it, whoever wrote it."""

from __future__ import annotations

import unicodedata

OBEYED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode's categories of what is no letter, sign or blank, but an order to the terminal, or
nothing.
"""
KEPT = {"\n", "\t", "\u200c", "\u200d"}
"""Of these: lines, columns, and what joins or parts letters in some scripts."""


def plain(text: str) -> str:
    """The text with orders to the terminal shown as they are written in Python, as `\\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_show(letter) for letter in text)


def _show(letter: str) -> str:
    if letter in KEPT or unicodedata.category(letter) not in OBEYED:
        return letter
    return ascii(letter)[1:-1]
