"""Checks of numbers in a class of options, for its `__post_init__`. No torch here."""

from __future__ import annotations

import dataclasses
import math

from synthesis_kernels.errors import EchosetError

MOST_SHARDS = 99_999
"""Files of a set: their names number them by five digits."""


def require_least(options: object, group: str, least: float, *names: str) -> None:
    """Refuse a field below `least`, infinite, or not a number; `group` is where its name begins."""
    for name in names:
        value = getattr(options, name)
        if not least <= value < math.inf:
            demand = "a number of at least 0" if least == 0 else f"at least {least}"
            if not math.isfinite(value):
                demand += " and finite"
            raise EchosetError(f"{_full(group, name)} must be {demand}, got {value}")


def require_most(options: object, group: str, most: float, *names: str) -> None:
    """Refuse a field above `most`, which would take for ever."""
    for name in names:
        value = getattr(options, name)
        if value > most:
            raise EchosetError(f"{_full(group, name)} must be at most {most:,}, got {value:,}")


def require_options(value: object, kind: type, name: str) -> None:
    """Refuse anything but such options, a model's name in the place of a model's, say."""
    if isinstance(value, kind):
        return
    has_model = "model" in [field.name for field in dataclasses.fields(kind)]
    told = f"model={value!r}" if has_model and isinstance(value, str) else "…"
    meant = f"{kind.__name__}({told})"
    raise EchosetError(f"{name} must be {meant}, got a {type(value).__name__}")


def require_shards(images: int, shard_images: int, group: str) -> None:
    """Refuse a set of more files than their names can number."""
    most = MOST_SHARDS * shard_images
    if images > most:
        raise EchosetError(
            f"{_full(group, 'images')} must be at most {most:,}: a set has up to {MOST_SHARDS:,} "
            f"files, of {_full(group, 'shard_images')} {shard_images:,} each; got {images:,}"
        )


def require_positive(options: object, group: str, *names: str) -> None:
    """Refuse a field that is 0 or less, infinite, or not a number."""
    for name in names:
        value = getattr(options, name)
        if not 0 < value < math.inf:
            raise EchosetError(f"{_full(group, name)} must be above 0 and finite, got {value}")


def require_within(options: object, group: str, interval: str, *names: str) -> None:
    """Refuse a field outside [0, 1], or [0, 1) where the interval says so."""
    for name in names:
        value = getattr(options, name)
        lies_within = 0 <= value <= 1
        if interval.endswith(")"):
            lies_within = 0 <= value < 1
        if not lies_within:
            raise EchosetError(f"{_full(group, name)} must lie in {interval}, got {value}")


def _full(group: str, name: str) -> str:
    """The option as the command line names it."""
    if group:
        return f"{group}.{name}"
    return name
