"""A transfer set again, in files of equal size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from distill.sets.answers import ENTRY, write_answers
from distill.sets.forms.content import Content, Progress
from distill.sets.merging import derived
from distill.sets.shards import DTYPES, shard_name, write_shard
from distill.sets.transfer_set import write_manifest
from distill.tasks.places import count_decisions
from synthesis_kernels.errors import EchosetError

SHARD = 5000
"""Most images in one file."""


def write_again(content: Content, folder: Path, progress: Progress) -> None:
    """Shards, and a manifest that tells what the parts' own said."""
    if content.views:
        raise EchosetError(
            "a set makes its views itself; leave out --views, or choose --form folder, npz or "
            "webdataset"
        )
    data = content.data
    entry = data.manifest.get(ENTRY, {})
    answers = data.answers.tensor if data.answers is not None else None
    # As it was loaded; what its shards say is kept as the manifest of a part.
    if data.manifest["shards"]:
        data = derived(data, "copied", [data])
    total = -(-len(data) // SHARD)
    shards = []
    files = []
    for index in range(total):
        part = slice(len(data) * index // total, len(data) * (index + 1) // total)
        tensors = {name: getattr(data, name)[part] for name in DTYPES}
        tensors["labels"] = tensors["labels"].to(data.task.label_dtype)
        shards.append(_write_shard(folder, shard_name(index, total), tensors, data.classes))
        if answers is not None:
            files.append(write_answers(folder, shards[-1]["file"], answers[part]))
        progress(part.stop)
    more = {ENTRY: {**entry, "files": files}} if files else {}
    write_manifest(folder, {**data.manifest, **more, "shards": shards})


def _write_shard(
    folder: Path, file: str, tensors: dict[str, Tensor], classes: int
) -> dict[str, Any]:
    """What the manifest says of the shard."""
    digest = write_shard(folder / file, tensors)
    count = len(tensors["labels"])
    counts = count_decisions(tensors["labels"], classes).tolist()
    return {"file": file, "sha256": digest, "count": count, "counts": counts, "seconds": 0.0}
