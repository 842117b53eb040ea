"""What a synthesis leaves short, made of its own images by the ways that `collect` has."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.models import Classifier
from distill.runtime import Runtime
from distill.sets.answers import ENTRY, drop_answers
from distill.sets.shards import DTYPES, shard_name, write_shard
from distill.sets.transfer_set import TransferSet, write_manifest
from distill.tasks import Task
from distill.tasks.places import count_decisions
from inversion.options import CollectOptions
from inversion.options.collect import USUAL_WAYS, MakingWay
from inversion.sources.collect import collect
from inversion.sources.collection import MADE
from inversion.sources.stock import quotas_of

WORK = ".filling"
"""In the set's folder while images are made for it."""


def missing_images(transfer_set: TransferSet) -> int:
    """How many images a synthesised set has less than were asked for."""
    config = transfer_set.manifest["config"]
    replay = config.get("replay")
    if replay is None or replay["keep_all"]:  # collected, or as many as there were calls for
        return 0
    return max(0, int(config["images"]) - len(transfer_set))


def forget_filling(out: str | Path) -> None:
    """Remove what a filling that was killed at its very end left."""
    shutil.rmtree(Path(out) / WORK, ignore_errors=True)


def fitting_ways(task: Task, ways: Sequence[MakingWay]) -> Sequence[MakingWay]:
    """The ways, with `augment` and `mixup` in place of the usual `push` where the task has several
    decisions an image.
    """
    return ("augment", "mixup") if ways == USUAL_WAYS and not task.exact else ways


def fill_short(
    transfer_set: TransferSet,
    teacher: Classifier,
    ways: Sequence[MakingWay],
    out: str | Path,
    runtime: Runtime = Runtime(),
) -> TransferSet:
    """Make images for the classes that the set in the folder `out` lacks, and add them to it as one
    shard more. The images that are there stay as they are.
    """
    out = Path(out)
    manifest = dict(transfer_set.manifest)
    missing = missing_images(transfer_set)
    wanted = len(transfer_set) + (missing or sum(manifest["short"].values()))
    ways = tuple(fitting_ways(transfer_set.task, ways))
    options = CollectOptions(images=wanted, short=ways, expose=0.0)
    found = collect(teacher, (str(out),), options, out / WORK, runtime=runtime.alone())
    made = _evenly(found, missing or wanted)
    tensors = {name: getattr(found, name)[made] for name in DTYPES}
    if len(made):
        # As of images that were never drawn.
        tensors["priority"] += transfer_set.priority.amax()
        quotas = quotas_of(options, found.classes)
        manifest |= _with_shard(manifest, transfer_set, found, made, tensors, quotas, out)
        manifest.pop(ENTRY, None)  # answers to views that are blended with fewer images
        write_manifest(out, manifest)
        drop_answers(out)
    shutil.rmtree(out / WORK)
    return TransferSet.load(out)


def _evenly(found: TransferSet, most: int) -> Tensor:  # (M,)
    """The places of the images that were made, so many at most: of each class the first, then the
    second of each, and so on. More may be there than are missing: where images show several
    classes, `collect` may have put others in the place of some that the set keeps.
    """
    made = (found.round == MADE).nonzero()[:, 0]
    groups = found.groups[made]
    same = groups[:, None] == torch.arange(found.classes)
    turn = same.cumsum(0).gather(1, groups[:, None])[:, 0]
    order = (turn * found.classes + groups).argsort()
    return made[order[:most]].sort().values


def _ways_of(taken: Mapping[str, list[int]], source: str, kept: list[int]) -> dict[str, list[int]]:
    """How the images that are kept of each class were made: the ways follow each other."""
    left = list(kept)
    ways = {}
    for way, rows in taken.items():
        if way != source:
            ways[way] = [min(pair) for pair in zip(rows, left, strict=True)]
            left = [rest - used for rest, used in zip(left, ways[way], strict=True)]
    return {way: rows for way, rows in ways.items() if any(rows)}


def _add_filled(
    before: Mapping[str, list[int]], filled: dict[str, list[int]]
) -> dict[str, list[int]]:
    """Images of each class by the way they were made, those of earlier fillings among them."""
    for way, rows in before.items():
        new = filled.get(way, [0] * len(rows))
        filled[way] = [sum(pair) for pair in zip(rows, new, strict=True)]
    return filled


def _with_shard(
    manifest: dict[str, Any],
    transfer_set: TransferSet,
    found: TransferSet,
    made: Tensor,
    tensors: dict[str, Any],
    quotas: list[int],
    out: Path,
) -> dict[str, Any]:
    """Write the shard, and give what the manifest then says otherwise."""
    account = found.manifest["collection"]
    count = len(manifest["shards"])
    name = shard_name(count, count + 1)
    added = count_decisions(tensors["labels"], found.classes).tolist()
    shard = {
        "file": name,
        "sha256": write_shard(out / name, tensors),
        "count": len(tensors["labels"]),
        "counts": added,
        "seconds": account["seconds"],
        "device": found.manifest["shards"][0]["device"],
    }
    counts = [sum(pair) for pair in zip(transfer_set.counts(), added, strict=True)]
    images = len(transfer_set) + shard["count"]
    short = transfer_set.task.shortfall(counts, quotas, images)
    kept = found.groups[made].bincount(minlength=found.classes).tolist()
    ways = _ways_of(account["taken"], str(out), kept)
    return {
        "counts": counts,
        "short": {str(label): lack for label, lack in short.items()},
        "filled": _add_filled(manifest.get("filled", {}), ways),
        "shards": [*manifest["shards"], shard],
    }
