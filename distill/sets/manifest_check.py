"""What a manifest, or a note of a shard, may say beside what every set has: of the kinds that its
readers expect, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distill.plain_files import require_shallow

Check = Callable[[Any], bool]
MOST_COUNT = 2**53
"""No count reaches it, and beyond it floats lose whole numbers."""
MOST_NESTED = 16
"""Sets merged of merged ones, at most."""


def is_count(value: Any) -> bool:
    """A whole number from 0."""
    return type(value) is int and 0 <= value < MOST_COUNT


def is_whole(value: Any) -> bool:
    """A whole number of either sign, such as a seed."""
    return type(value) is int and -(2**64) < value < 2**64


def is_number(value: Any) -> bool:
    """A number that is no truth value, and finite."""
    return type(value) in (int, float) and -MOST_COUNT < value < MOST_COUNT


def is_text(value: Any) -> bool:
    """A text, or none."""
    return value is None or isinstance(value, str)


def check_entries(manifest: Mapping[str, Any], classes: int, depth: int = 0) -> None:
    """Refuse, by a ValueError that names the entry, what is there and of another kind."""
    require_shallow(manifest)
    if depth > MOST_NESTED:
        raise ValueError("it is made of sets within sets")
    per_class = _list_of(is_count, classes)
    by_class = _mapping_of(is_count, _is_label(classes))
    kinds = {
        "counts": _list_of(is_count),
        "raw_counts": _or_none(per_class),
        "short": _or_none(by_class),
        "filled": _mapping_of(per_class),
        "seed": is_whole,
        "method": is_text,
        "collection": _is_mapping,
    }
    _require(manifest, "", kinds)
    _require(manifest["teacher"], "teacher.", {"model": is_text, "weight_hash": is_text})
    _check_collection(manifest.get("collection", {}), per_class, by_class, classes)
    for entry in manifest["shards"]:
        check_shard_entry(entry, classes)
    parts = manifest["config"].get("of") or []
    if not _list_of(_is_mapping)(parts):
        raise ValueError("'config.of' is no list of manifests")
    for part in parts:
        whole = {"teacher": {}, "shards": [], "config": {}} | part
        if not isinstance(whole["config"], dict) or not isinstance(whole["shards"], list):
            raise ValueError("'config.of' holds what is no manifest")
        check_entries({**whole, "teacher": manifest["teacher"]}, classes, depth + 1)


def check_shard_entry(entry: Any, classes: int) -> None:
    """The same of what is told of one shard."""
    if not isinstance(entry, dict):
        raise ValueError("what it tells of a shard is no mapping")
    per_class = _list_of(is_count, classes)
    kinds = {
        "file": is_text,
        "sha256": is_text,
        "device": is_text,
        "torch": is_text,
        "count": is_count,
        "calls": is_count,
        "seed": is_whole,
        "counts": per_class,
        "raw_counts": per_class,
        "seconds": is_number,
    }
    _require(entry, "", kinds)


def _check_collection(
    told: Mapping[str, Any], per_class: Check, by_class: Check, classes: int
) -> None:
    kinds = {
        "drawn": is_count,
        "missing": is_count,
        "seconds": is_number,
        "raw_coverage": is_number,
        "raw_counts": per_class,
        "accepted": per_class,
        "needed": _list_of(_or_none(is_count), classes),
        "taken": _mapping_of(per_class),
        "short": by_class,
        "sources": _list_of(lambda value: isinstance(value, str)),
        "exposed": _mapping_of(is_number),
    }
    _require(told, "collection.", kinds)


def _require(told: Mapping[str, Any], where: str, kinds: Mapping[str, Check]) -> None:
    for key, fits in kinds.items():
        if key in told and not fits(told[key]):
            raise ValueError(f"'{where}{key}' is not what it should be: {told[key]!r:.40}")


def _or_none(fits: Check) -> Check:
    return lambda value: value is None or fits(value)


def _list_of(fits: Check, length: int | None = None) -> Check:
    def check(value: Any) -> bool:
        if not isinstance(value, list) or length not in (None, len(value)):
            return False
        return all(map(fits, value))

    return check


def _mapping_of(fits: Check, named: Check = lambda name: True) -> Check:
    def check(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        return all(map(fits, value.values())) and all(map(named, value))

    return check


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_label(classes: int) -> Check:
    def check(name: Any) -> bool:
        return name.isascii() and name.isdecimal() and len(name) < 8 and int(name) < classes

    return check
