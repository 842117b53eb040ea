"""What the kinds of files for `mutate.py` have in common."""

from __future__ import annotations

import contextlib
import io
import random
from typing import Any, Protocol

import torch

from distill.models.classifier import ModelSpec
from distill.sets.shards import shard_name
from inversion.cli.main import main
from synthesis_kernels.errors import EchosetError

SPEC = ModelSpec("convnet-4", channels=1, size=8, classes=3)
COUNT = 6


class Kind(Protocol):
    """A kind of file."""

    def change(self, chance: random.Random) -> int:
        """Write the file, changed; gives its bytes."""

    def read(self) -> None:
        """Read it."""


def run_verb(*arguments: str) -> None:
    """Run the command line; what it refuses is an error as everywhere else."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(list(arguments))
    print(said.getvalue())
    if status:
        raise EchosetError(said.getvalue())


def some_tensors() -> dict[str, torch.Tensor]:
    """Those of a shard."""
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(COUNT, 3, generator=chance)
    return {
        "images": torch.randint(256, (COUNT, 1, 8, 8), generator=chance, dtype=torch.uint8),
        "labels": logits.argmax(1),
        "logits": logits.half(),
        "priority": torch.rand(COUNT, generator=chance),
        "round": torch.zeros(COUNT, dtype=torch.int32),
    }


def some_manifest(digest: str) -> dict[str, Any]:
    """The manifest of a set of one shard."""
    labels = some_tensors()["labels"]
    counts = torch.bincount(labels, minlength=3).tolist()
    shard = {"file": shard_name(0, 1), "sha256": digest, "count": COUNT, "counts": counts}
    account: dict[str, Any] = {"sources": ["noise"], "exposed": {"noise": 0.5}, "drawn": 9}
    account |= {"raw_counts": [3, 3, 3], "accepted": [3, 3, 3], "needed": [1, None, 2]}
    account |= {"taken": {"noise": counts}, "short": {"1": 2}, "missing": 2}
    account |= {"seconds": 1.0, "raw_coverage": 0.9}
    return {
        "code_version": "0",
        "method": "collect",
        "seed": 0,
        "teacher": {"model": "convnet-4", "weight_hash": "ab"},
        "config": {"images": COUNT, "balanced": False, "of": [{"collection": account}]},
        "input": {
            "channels": 1,
            "size": 8,
            "classes": 3,
            "task": "classification",
            "mean": [0.0],
            "std": [1.0],
            "class_names": ["cat", "dog", "emu"],
        },
        "counts": counts,
        "short": {"1": 2},
        "raw_counts": [3, 3, 3],
        "collection": account,
        "shards": [{**shard, "seconds": 1.0, "device": "cpu", "calls": 3}],
    }
