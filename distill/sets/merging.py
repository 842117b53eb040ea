"""Transfer sets merged, and drawn down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distill.models.contract import differing
from distill.sets.answers import ENTRY
from distill.sets.shards import DTYPES, join_tensors
from distill.sets.transfer_set import TransferSet, raw_counts
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.priority import draw_by_class, draw_chances

EXPONENT = 0.5
"""Of the priority, in the chance to be drawn, as while synthesising."""


def merge(sets: Sequence[TransferSet], names: Sequence[str] = ()) -> TransferSet:
    """Sets of one teacher as one, in this order; `names` are what an error calls them.

    Priorities, which come from different students or none, are put in units of each set's mean; a
    set without any gets 1.
    """
    if not sets:
        raise EchosetError("no transfer set given to merge")
    first = sets[0].manifest
    for number, other in enumerate(sets[1:], 1):
        name = names[number] if number < len(names) else f"set {number}"
        _check_same_teacher(first, other.manifest, name)
    if len(sets) == 1:
        return sets[0]
    held = [{name: getattr(one, name) for name in DTYPES} for one in sets]
    tensors: dict[str, Any] = join_tensors(held)
    tensors["priority"] = torch.cat([_in_units_of_mean(one.priority) for one in sets])
    whole = replace(sets[0], **tensors, answers=None)
    return derived(whole, "merged", sets)


def _check_same_teacher(first: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    if other["teacher"].get("weight_hash") != first["teacher"].get("weight_hash"):
        raise EchosetError(
            f"{name} was made by another teacher than the first; sets of one teacher can be merged"
        )
    keys = [key for key in first["input"] if key != "class_names"]
    differ = differing(first["input"], other["input"], keys)
    if differ:
        raise EchosetError(
            f"{name} was made for another {', '.join(differ)} than the first; it can't be merged "
            "with that"
        )


def _in_units_of_mean(priority: Tensor) -> Tensor:  # (N,)
    mean = priority.mean()
    if mean > 0:
        return priority / mean
    return torch.ones_like(priority)


def subsample(data: TransferSet, images: int, seed: int = 0) -> TransferSet:
    """`images` of the set, as many of each class, within a class by priority; in the order they
    had.

    A class with too few leaves its places to the others.
    """
    if not 1 <= images <= len(data):
        raise EchosetError(
            f"images must lie in [1, {len(data)}], the images there are, got {images}"
        )
    classes = data.classes
    quotas = torch.tensor([len(range(label, images, classes)) for label in range(classes)])
    chances = draw_chances(data.priority, EXPONENT)
    generator = torch.Generator().manual_seed(seed)
    drawn = draw_by_class(chances, data.groups, quotas, images, generator).sort().values
    tensors: dict[str, Any] = {name: getattr(data, name)[drawn] for name in DTYPES}
    part = replace(data, **tensors, answers=None)
    lacking = data.task.shortfall(part.counts(), quotas.tolist(), images)
    short = {str(label): count for label, count in lacking.items()}
    return derived(part, "drawn", [data], seed=seed, short=short)


def derived(
    data: TransferSet, method: str, parts: Sequence[TransferSet], **more: Any
) -> TransferSet:
    """What was put together or drawn from sets, with a manifest that says so, and of each part all
    that its own says.
    """
    shared = ("teacher", "input", "format_version", ENTRY)
    told = []
    for one in parts:
        told.append({key: value for key, value in one.manifest.items() if key not in shared})
    counts = data.counts()
    is_meant_even = method == "drawn" or data.task.is_balanced(counts)
    manifest = {key: data.manifest[key] for key in ("code_version", "teacher", "input")}
    manifest |= {"method": method, "config": {"balanced": is_meant_even, "of": told}}
    raw = [raw_counts(one.manifest) for one in parts]
    if all(isinstance(one, list) and len(one) == data.classes for one in raw):
        manifest["raw_counts"] = [sum(column) for column in zip(*raw, strict=True)]
    manifest |= {"counts": counts, "short": {}, **more, "shards": []}
    return replace(data, manifest=manifest)
