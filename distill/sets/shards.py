"""The shards of a transfer set: named, written, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.models.classifier import spec_of
from distill.sets.tensor_files import read_tensors, require_answers, require_tensor, write_tensors
from distill.tasks import find_task
from distill.tasks.places import enlarge, in_parts
from synthesis_kernels.errors import EchosetError

SHARD_NAME = re.compile(r"shard-\d{5}-of-\d{5}\.safetensors")
ROUNDING = 2e-3
"""What float16 may change of a difference of logits, relative to the largest of an image."""
DTYPES: dict[str, torch.dtype | None] = {
    "images": torch.uint8,
    "labels": None,
    "logits": torch.float16,
    "priority": torch.float32,
    "round": torch.int32,
}
"""What a shard holds; labels are stored as the task has them."""


def shard_name(index: int, total: int) -> str:
    """File name of one shard."""
    return f"shard-{index:05d}-of-{total:05d}.safetensors"


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write one shard in one rename and return its SHA-256; equal tensors give equal bytes."""
    held = {name: tensors[name].to(device="cpu", dtype=dtype) for name, dtype in DTYPES.items()}
    return write_tensors(path, held)


def read_shard(
    folder: Path, entry: Mapping[str, Any], manifest: Mapping[str, Any], check_hash: bool
) -> dict[str, Tensor]:
    """The tensors of a shard that the manifest lists, checked."""
    path = folder / entry["file"]
    tensors = read_tensors(
        path,
        entry["sha256"] if check_hash else None,
        missing="copy it back, or give the command that made the set again",
        changed="copy it back, or delete it, and the command that made the set makes that shard "
        "again",
    )
    _check_shard(tensors, entry["count"], manifest["input"], path)
    return tensors


def join_tensors(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of several shards or sets, one after another. Where some keep their logits otherwise
    than others, they are enlarged; and where some keep none, none are kept.
    """
    tensors = {name: [part[name] for part in parts] for name in DTYPES}
    if len({logits.shape[1:] for logits in tensors["logits"]}) > 1:
        tensors["logits"] = _alike(tensors["logits"], tensors["labels"][0].shape[1:])
    return {name: torch.cat(given) for name, given in tensors.items()}


def _alike(
    parts: Sequence[Tensor],  # each (N, K, h, w) float16, of sizes of their own
    places: Sequence[int],
) -> list[Tensor]:  # each (N, K, *places), or 0 × 0
    """Logits of one size: at each place, or none where some parts have none."""
    if not all(part.numel() for part in parts):
        return [part[:, :, :0, :0] for part in parts]
    return [enlarge(part, places) for part in parts]


def _check_shard(
    tensors: Mapping[str, Tensor], count: int, contract: Mapping[str, Any], path: Path
) -> None:
    """Shapes, types and values of a shard's tensors."""
    classes = contract["classes"]
    task = find_task(contract["task"])
    spec = spec_of(contract)
    places = task.places(spec)
    dtypes = {name: dtype or task.label_dtype for name, dtype in DTYPES.items()}
    shapes = {
        "images": (count, *spec.shape),
        "labels": (count, *places),
        "priority": (count,),
        "round": (count,),
    }
    for name, shape in shapes.items():
        require_tensor(tensors, name, shape, dtypes[name], path)
    logits = require_answers(tensors, "logits", (count, classes), places, path, least=0)
    if not torch.isfinite(logits).all() or not torch.isfinite(tensors["priority"]).all():
        raise EchosetError(f"{path}: logits or priorities are not finite")
    labels = tensors["labels"]
    outside = (labels < 0) | (labels >= classes)
    if outside.any() or _prefers_others(logits, labels.long()):
        raise EchosetError(f"{path}: some labels are not the classes their stored logits prefer")


def _prefers_others(
    logits: Tensor,  # (N, K, h, w) float16, or one decision an image (N, K)
    labels: Tensor,  # (N, *places)
) -> bool:
    """Whether a logit is clearly larger than the label's."""
    if not logits.numel():
        return False
    places = labels.shape[1:]
    for part in in_parts(len(labels), (logits.shape[1], *places)):
        whole = enlarge(logits[part].float(), places)
        behind = whole.amax(1) - whole.gather(1, labels[part].unsqueeze(1)).squeeze(1)
        # float16 rounding keeps order, so the label's logit stays the largest, if perhaps not the
        # only largest; one between two that were rounded may come out a little smaller.
        slack: Tensor | float = 0.0
        if logits.shape[2:] != places:
            slack = ROUNDING * (1 + logits[part].float().abs().amax((1, 2, 3)))[:, None, None]
        if (behind > slack).any():
            return True
    return False
