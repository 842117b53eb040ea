"""What a collection leaves: its shards, and an account of where its images came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.models import Classifier
from distill.sets.keeping import logits_to_keep
from distill.sets.shards import shard_name, write_shard
from distill.tasks.places import count_decisions, decide
from inversion.scoring.measures import coverage
from inversion.sources.collection import Collection
from inversion.sources.stock import Stock
from synthesis_kernels.backend import describe_device


def write_shards(
    collection: Collection, teacher: Classifier, shard_images: int, out: Path
) -> list[dict[str, Any]]:
    """Write all shards, each balanced like the whole, and say what is in them."""
    stock = collection.stock
    kept = stock.kept()
    total = -(-len(kept) // shard_images)
    entries = []
    for index in range(total):
        part = kept[len(kept) * index // total : len(kept) * (index + 1) // total]
        tensors = _shard_tensors(stock, teacher, part, len(kept))
        name = shard_name(index, total)
        entries.append(
            {
                "file": name,
                "sha256": write_shard(out / name, tensors),
                "count": len(part),
                "counts": count_decisions(tensors["labels"], stock.classes).tolist(),
                "seconds": round(collection.seconds / total, 3),
                "device": describe_device(stock.images.device),
            }
        )
    return entries


def _shard_tensors(
    stock: Stock, teacher: Classifier, slots: Tensor, total: int
) -> dict[str, Tensor]:
    images = stock.images[slots]
    logits = stock.logits[slots]
    return {
        "images": images,
        "labels": decide(logits).to(stock.task.label_dtype),
        "logits": logits_to_keep(teacher, images, logits, total),
        "priority": torch.zeros(len(slots)),
        "round": stock.round[slots],
    }


def summarize(collection: Collection) -> dict[str, Any]:
    """What was drawn, accepted, taken, made, and is missing, by class."""
    stock = collection.stock
    missing = stock.missing().tolist()
    short = {}
    if stock.balanced:
        short = {str(label): count for label, count in enumerate(missing) if count}
    needed = [count if count >= 0 else None for count in collection.needed.tolist()]
    taken = {phase: counts.tolist() for phase, counts in collection.taken.items() if counts.any()}
    return {
        "drawn": int(collection.raw.sum()),
        "raw_counts": collection.raw.tolist(),
        "raw_coverage": round(coverage(collection.raw), 4),
        "accepted": collection.accepted.tolist(),
        "needed": needed,
        "taken": taken,
        "short": short,
        "missing": sum(missing),
        "seconds": round(collection.seconds, 3),
    }
