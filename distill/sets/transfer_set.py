"""The transfer set: a folder of images a teacher has labelled, the one artefact both stages share.

    shard-00000-of-00002.safetensors   images u8 (N,C,H,W), labels i64 (N) or as the task stores
                                       them, logits f16 (N,K), of maps (N,K,h,w) at the
                                       network's own size, priority f32, round i32
    answers-00000-of-00002.safetensors perhaps, the answers to views of its images
                                       (`distill.sets.answers`)
    manifest.json                      format and code version, config, teacher, input contract,
                                       counts, shards with hashes

Reading never trusts the folder: names are checked before they are opened, shapes and counts before
they are used, and every byte is compared with its hash, unless `check_hashes=False`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.files import seal, unseal, write_atomically
from distill.models.classifier import spec_of
from distill.models.contract import check_contract
from distill.names import known_names
from distill.sets.answers import ViewAnswers, check_answers, find_answers
from distill.sets.loading import ItemSet
from distill.sets.manifest_check import check_entries
from distill.sets.shards import SHARD_NAME, join_tensors, read_shard
from distill.tasks import USUAL, Task, find_task
from distill.tasks.places import count_decisions, enlarge
from synthesis_kernels.errors import EchosetError

FORMAT_VERSION = 1
ENTRIES = {
    "teacher": dict,
    "input": dict,
    "counts": list,
    "shards": list,
    "config": dict,
    "code_version": str,
}
"""What a manifest has at least."""
MARKER = ".job"
"""In a set's folder from its beginning: the hash of what is being made there."""


@dataclass(frozen=True, eq=False, repr=False)
class TransferSet(ItemSet):
    """Images with the teacher's answers. An item is (image in [0, 1], label, logits, index), by
    name too, so a DataLoader takes a set as it is.
    """

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N, *places) as the task stores them, the teacher's prediction
    # (N, K) float16, the teacher's answer to exactly these images; of maps (N, K, h, w), at the
    # network's own size, or 0 × 0 where they would have taken too much: see `logits_of`.
    logits: Tensor
    # (N,) float32, the last disagreement seen while synthesising, unseen the highest; merged: in
    # means of a part.
    priority: Tensor
    # (N,) int32, the generator call that made it; of a collected one, its source's block; −1 if
    # made.
    round: Tensor
    manifest: Mapping[str, Any]
    # The teacher's answers to views of the images, read when they are first used; None where it
    # has none.
    answers: ViewAnswers | None = None

    @property
    def classes(self) -> int:
        return self.logits.shape[1]

    @property
    def task(self) -> Task:
        """What the teacher's decisions are."""
        return find_task(self.manifest["input"].get("task", USUAL))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, where its manifest has them."""
        return known_names(self.manifest["input"].get("class_names"), self.classes)

    @property
    def has_logits(self) -> bool:
        """Whether it keeps the teacher's answers to its images; of large label maps it does not."""
        return self.logits.numel() > 0

    def logits_of(self, index: Tensor | slice) -> Tensor:  # (n, K, *places) float32
        """The teacher's answers to some images, at each pixel where labels are maps."""
        return enlarge(self.logits[index].float(), self.labels.shape[1:])

    @property
    def groups(self) -> Tensor:  # (N,)
        """The class that each image counts for."""
        return self.task.group(self.labels, self.classes)

    def counts(self) -> list[int]:
        """Decisions for each class: images, where there is one an image."""
        return count_decisions(self.labels, self.classes).tolist()

    @classmethod
    def load(cls, folder: str | Path, check_hashes: bool = True) -> TransferSet:
        """Read a finished set; raises `EchosetError` naming the file if anything about it doesn't
        hold.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        parts = [read_shard(folder, entry, manifest, check_hashes) for entry in manifest["shards"]]
        tensors = join_tensors(parts)
        loaded = cls(**tensors, manifest=manifest, answers=_answers_in(folder, manifest))
        if loaded.counts() != manifest["counts"]:
            raise EchosetError(
                f"{folder / 'manifest.json'} counts {manifest['counts']} per class, the shards "
                f"hold {loaded.counts()}"
            )
        return loaded


def is_set(folder: str | Path) -> bool:
    """Whether the folder holds a transfer set, or what is to become one."""
    return any((Path(folder) / name).is_file() for name in ("manifest.json", MARKER))


def find_set_answers(folder: str | Path) -> ViewAnswers | None:
    """The answers to views that a finished set in this folder carries, not read yet; None without
    any, and where no set is.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        return None
    return _answers_in(folder, read_manifest(folder))


def _answers_in(folder: Path, manifest: Mapping[str, Any]) -> ViewAnswers | None:
    contract = manifest["input"]
    places = find_task(contract["task"]).places(spec_of(contract))
    return find_answers(folder, manifest, tuple(places))


def raw_counts(manifest: Mapping[str, Any]) -> Any:
    """The teacher's decisions on all images before any were chosen, as a manifest has them; None
    where it does not say.
    """
    kept = manifest.get("collection")
    return kept.get("raw_counts") if isinstance(kept, dict) else manifest.get("raw_counts")


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.json`, which makes the set complete; its values are checked as a reader
    would.
    """
    text = json.dumps(seal({"format_version": FORMAT_VERSION, **manifest}), indent=1)
    _check_manifest(json.loads(text), folder / "manifest.json")
    write_atomically(folder / "manifest.json", f"{text}\n".encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked content of `manifest.json`."""
    path = folder / "manifest.json"
    if not path.is_file():
        begun = ""
        if (folder / MARKER).is_file():
            begun = "; give the command that began it again, to finish it"
        raise EchosetError(
            f"{folder} is not a finished transfer set: it has no manifest.json{begun}"
        )
    try:
        manifest = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise EchosetError(f"{path} is not readable JSON: {error}") from error
    _check_manifest(manifest, path)
    try:
        return unseal(manifest)
    except ValueError as error:
        raise EchosetError(
            f"{path} is damaged: {error}; copy it back, or delete it, and the command that made "
            "the set writes it again"
        ) from error


def _check_manifest(manifest: Any, path: Path) -> None:
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise EchosetError(
            f"{path} has format version {version}; this echoset reads version {FORMAT_VERSION}"
        )
    for key, kind in ENTRIES.items():
        if not isinstance(manifest.get(key), kind):
            raise EchosetError(f"{path}: '{key}' is missing or not a {kind.__name__}")
    if not manifest["shards"]:
        raise EchosetError(f"{path} lists no shards")
    contract = manifest["input"]
    check_contract(contract, f"{path}, 'input'")
    contract.setdefault("task", USUAL)  # sets from before there were tasks have none
    for entry in manifest["shards"]:
        _check_entry(entry, path)
    if len({entry["file"] for entry in manifest["shards"]}) < len(manifest["shards"]):
        raise EchosetError(f"{path} lists a shard twice")
    try:
        check_entries(manifest, contract["classes"])
    except ValueError as error:
        raise EchosetError(f"{path} is not as echoset writes it: {error}") from error
    if not sum(entry["count"] for entry in manifest["shards"]):
        raise EchosetError(f"{path} lists no images")
    check_answers(manifest, path)


def _check_entry(entry: Any, path: Path) -> None:
    """What a manifest says of one shard. The name is checked in full, so a manifest can't make us
    open a file outside its folder.
    """
    if not isinstance(entry, dict) or not SHARD_NAME.fullmatch(str(entry.get("file"))):
        raise EchosetError(f"{path} lists a shard that is not a plain shard name: {entry!r:.200}")
    count = entry.get("count")
    digest = str(entry.get("sha256"))
    if type(count) is not int or count < 0 or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise EchosetError(f"{path}: shard {entry['file']} lacks a count or a SHA-256")
