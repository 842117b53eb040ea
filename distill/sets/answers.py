"""The teacher's answers that a set carries: to several views of each image, so that a student needs
no teacher.

    answers-00000-of-00002.safetensors   answers f16 (n, V, K), of maps (n, V, K, h, w) at the
                                         network's own size, beside the shard of the same number

The views need no storing: `make_views` repeats each from the set's images, in the set's order, from
the image's number, the view's number and the seed. Blended views have partners in the whole set, so
the answers hold for these images alone: whoever adds or removes one has to drop them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.options import ViewOptions
from distill.sets.tensor_files import read_tensors, require_answers, write_tensors
from distill.sizes import sides
from synthesis_kernels.errors import EchosetError

ENTRY = "answers"
"""Of the manifest, and the name of the tensor in each file."""
REMEDY = "make them again with --answers, by the command that made the set"


@dataclass(frozen=True)
class ViewAnswers:
    """The teacher's answers to views 0 … V−1 of each image of a set. Nothing is read before
    `tensor` is asked for.
    """

    folder: Path
    files: tuple[Mapping[str, Any], ...]
    """Name, SHA-256 and number of images of each, in the set's order."""
    channels: int
    """Of the images."""
    side: int
    """The shorter one of the images."""
    shape: tuple[int, ...]
    """Of one answer: (K, *places). Maps may be kept smaller, at the network's own size."""
    per_image: int
    """V, the views of each image."""
    views: ViewOptions
    """How they were made."""
    seed: int
    """… and from which seed."""
    precision: str
    """Of the matrix products in the teacher."""

    def __len__(self) -> int:
        return sum(entry["count"] for entry in self.files)

    @cached_property
    def tensor(self) -> Tensor:  # (N, V, K, h, w), or one decision an image (N, V, K), float16
        """The answers, read and checked when this is first asked for."""
        parts = [self._read(entry) for entry in self.files]
        if len({part.shape[1:] for part in parts}) > 1:
            raise EchosetError(f"{self.folder}: answers to views are of several sizes; {REMEDY}")
        return torch.cat(parts)

    @property
    def identity(self) -> list[Any]:
        """What a student that learns from them depends on."""
        hashes = [entry["sha256"] for entry in self.files]
        return [self.per_image, asdict(self.views), self.seed, hashes]

    def hold_for(self, per_image: int, views: ViewOptions) -> bool:
        """Whether these are the answers to so many views of each image, made in this way."""
        return 0 < per_image <= self.per_image and views == self.views

    def _read(self, entry: Mapping[str, Any]) -> Tensor:
        path = self.folder / entry["file"]
        tensors = read_tensors(path, entry["sha256"], missing=REMEDY, changed=REMEDY)
        classes, *places = self.shape
        shape = (entry["count"], self.per_image, classes)
        answers = require_answers(tensors, ENTRY, shape, tuple(places), path)
        require_finite(answers, path)
        return answers


def require_finite(answers: Tensor, path: Path) -> None:
    """Refuse answers that float16 has no number for."""
    if not torch.isfinite(answers).all():
        raise EchosetError(f"{path}: some of the teacher's answers are no finite float16 numbers")


def find_answers(
    folder: Path, manifest: Mapping[str, Any], places: tuple[int, ...]
) -> ViewAnswers | None:
    """The answers that a set carries by its manifest, which was checked; None where it has none."""
    entry = manifest.get(ENTRY)
    if entry is None:
        return None
    return ViewAnswers(
        folder,
        tuple(entry["files"]),
        manifest["input"]["channels"],
        min(sides(manifest["input"]["size"])),
        (manifest["input"]["classes"], *places),
        entry["per_image"],
        ViewOptions(**entry["views"]),
        entry["seed"],
        entry.get("precision", "float32"),
    )


def answers_name(shard: str) -> str:
    """File name of the answers that belong to this shard."""
    return shard.replace("shard", ENTRY, 1)


def write_answers(
    folder: Path,
    shard: str,
    answers: Tensor,  # (n, V, K, *places)
) -> dict[str, Any]:
    """Write the answers that belong to a shard, and return what the manifest says of the file."""
    name = answers_name(shard)
    answers = answers.to(device="cpu", dtype=torch.float16)
    require_finite(answers, folder / name)
    digest = write_tensors(folder / name, {ENTRY: answers})
    return {"file": name, "sha256": digest, "count": len(answers)}


def drop_answers(folder: Path) -> None:
    """Remove the files of answers; the manifest must list none any more."""
    for path in folder.glob(f"{ENTRY}-*.safetensors"):
        path.unlink(missing_ok=True)


def check_answers(manifest: Mapping[str, Any], path: Path) -> None:
    """Refuse what no manifest should say of answers. Each file's name follows from its shard's, so
    a manifest can't make us open one outside its folder.
    """
    entry = manifest.get(ENTRY)
    if entry is None:
        return
    known = isinstance(entry, dict) and isinstance(entry.get("files"), list)
    if not known or type(entry.get("per_image")) is not int or type(entry.get("seed")) is not int:
        raise EchosetError(f"{path}: '{ENTRY}' lacks per_image, seed or files; {REMEDY}")
    if entry["per_image"] < 1:
        raise EchosetError(f"{path}: '{ENTRY}' are to {entry['per_image']} views an image")
    try:
        ViewOptions(**entry["views"])
    except (KeyError, TypeError, EchosetError) as error:
        raise EchosetError(f"{path}: '{ENTRY}' are to views that can't be made: {error}") from error
    expected = [(answers_name(shard["file"]), shard["count"]) for shard in manifest["shards"]]
    listed = [_name_and_count(file) for file in entry["files"]]
    if listed != expected:
        raise EchosetError(f"{path}: the files of '{ENTRY}' are not those of its shards; {REMEDY}")


def _name_and_count(file: Any) -> tuple[str, int] | None:
    """What a manifest says of one file; None where it lacks a hash."""
    if not isinstance(file, dict):
        return None
    if not re.fullmatch(r"[0-9a-f]{64}", str(file.get("sha256"))):
        return None
    return str(file.get("file")), file.get("count", -1)
