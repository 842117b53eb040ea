"""The plan of a synthesis: which shards there are, which are done, and the manifest once all of
them are.

A plan follows from the options alone, and a job's seed from the job; so any number of processes may
share a plan. They share it group by group, where jobs are made several at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from distill.files import hash_file, unseal, write_atomically
from distill.models import Classifier
from distill.sets.answers import drop_answers
from distill.sets.manifest_check import check_shard_entry
from distill.sets.shards import shard_name
from distill.sets.transfer_set import MARKER, TransferSet, read_manifest, write_manifest
from inversion.options import CollectOptions, SynthesisOptions
from inversion.teacher_file import write_teacher
from synthesis_kernels.errors import EchosetError


@dataclass(frozen=True)
class ShardJob:
    """One shard's worth of work."""

    index: int
    total: int
    seed: int
    quotas: list[int]
    """Images of each class."""
    images: int
    """Of the whole set."""

    @property
    def file(self) -> str:
        """Name of the shard it leaves."""
        return shard_name(self.index, self.total)


def plan(options: SynthesisOptions, classes: int, seed: int = 0) -> list[ShardJob]:
    """Divide the images into jobs. Each is balanced over all classes, and so is their union (max −
    min ≤ 1); a growing pool (replay.keep_all) is one job, of as many images as are made, and its
    quotas only their sum.
    """
    images = options.images
    total = -(-options.images // options.shard_images)
    if options.replay.keep_all:
        images = options.calls * options.batch
        total = 1
    jobs = []
    for index in range(total):
        # Image i of the whole set is of class i mod K, and a job makes one run of consecutive
        # images.
        first = images * index // total
        last = images * (index + 1) // total
        quotas = []
        for label in range(classes):
            first_of_class = first + (label - first) % classes
            quotas.append(len(range(first_of_class, last, classes)))
        job_seed = int.from_bytes(sha256(f"{seed}/{index}".encode()).digest()[:7], "big")
        jobs.append(ShardJob(index, total, job_seed, quotas, images))
    return jobs


def side_by_side(jobs: list[ShardJob], abreast: int) -> list[list[ShardJob]]:
    """The jobs in groups that are made together. They follow from the plan alone, and neither from
    the number of processes nor from what is finished.
    """
    return [jobs[first : first + abreast] for first in range(0, len(jobs), abreast)]


def key_of(identity: dict[str, Any]) -> str:
    """The hash of what is being made in a folder."""
    return sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def claim(out: Path, identity: dict[str, Any], parts: str = "options, seed or teacher") -> str:
    """Mark the folder with the hash of what is being made in it, and return that; two different
    sets are not mixed.
    """
    key = key_of(identity)
    marker = out / MARKER
    if marker.is_file():
        if marker.read_bytes() != key.encode():
            raise EchosetError(
                f"{out} holds a set made with other {parts}; choose another --out, or delete that "
                "folder first"
            )
    elif out.exists() and (
        not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())
    ):
        raise EchosetError(f"{out} exists and is not a set of this run; choose another --out")
    else:
        write_atomically(marker, key.encode())
    return key


def adversary_file(out: Path, index: int) -> Path:
    """Where a shard's adversarial student is kept, if it is."""
    return out / f"adversary-{index:05d}.safetensors"


def note_of(out: Path, job: ShardJob) -> Path:
    """What is left beside a shard that is finished."""
    return out / f".{job.file}.done"


def finished(out: Path, job: ShardJob, check: bool = False) -> dict[str, Any] | None:
    """The note left beside a finished shard, or None where the shard is still to be made; with
    `check`, its bytes are compared.
    """
    path = note_of(out, job)
    shard = out / job.file
    if not path.is_file() or not shard.is_file():
        return None
    try:
        note = unseal(json.loads(path.read_text()))
        if not {"file", "count", "counts", "sha256"} <= note.keys():
            raise ValueError("not what is noted of a shard")
        check_shard_entry(note, len(job.quotas))
    except (ValueError, RecursionError) as error:
        raise EchosetError(
            f"{path} is damaged ({error}); delete it to make that shard again"
        ) from error
    if check and hash_file(shard) != note["sha256"]:
        raise EchosetError(
            f"{shard} has changed since it was made; delete it, and the same command makes that "
            "shard again"
        )
    return note


def assemble(
    out: Path,
    jobs: list[ShardJob],
    teacher: Classifier,
    teacher_hash: str,
    options: SynthesisOptions,
    seed: int,
    own: Mapping[str, Any] | None = None,
) -> TransferSet | None:
    """Write the manifest once every shard is there. It names what is a user's own."""
    notes = [finished(out, job) for job in jobs]
    if any(note is None for note in notes):
        return None
    shards = [note for note in notes if note is not None]
    if not (out / "manifest.json").is_file() or not _begins_with(out, shards):
        wanted: list[int] | None = None
        if not options.replay.keep_all:  # in a growing pool every image counts
            wanted = _sums(job.quotas for job in jobs)
        if not sum(note["count"] for note in shards):
            raise EchosetError(
                f"{out}: the teacher decided no image as the class that it was made for, so there "
                "is none to keep; raise synthesis.calls or synthesis.batch, and give another --out"
            )
        more: dict[str, Any] = {"own": dict(own)} if own else {}
        if all("raw_counts" in note for note in shards):
            more["raw_counts"] = _sums(note["raw_counts"] for note in shards)
        finish_set(
            out, options.recipe, options, seed, teacher, teacher_hash, shards, wanted, **more
        )
    add_class_names(out, teacher)
    return TransferSet.load(out)


def _begins_with(out: Path, shards: list[dict[str, Any]]) -> bool:
    """Whether the manifest lists these shards, and perhaps one that fills short classes."""
    return read_manifest(out)["shards"][: len(shards)] == shards


def add_class_names(out: Path, teacher: Classifier) -> None:
    """Put the classes' names into the manifest of a set that was finished without them."""
    manifest = read_manifest(out)
    names = teacher.input.get("class_names")
    if names and manifest["input"].get("class_names") != names:
        manifest["input"]["class_names"] = names
        write_manifest(out, manifest)


def _sums(rows: Iterable[list[int]]) -> list[int]:
    """The sum of each column."""
    return [sum(column) for column in zip(*rows, strict=True)]


def finish_set(
    out: Path,
    method: str,
    options: SynthesisOptions | CollectOptions,
    seed: int,
    teacher: Classifier,
    teacher_hash: str,
    shards: list[dict[str, Any]],
    wanted: list[int] | None,
    **more: Any,
) -> None:
    """Write the manifest; `wanted` are the images that each class should have, None where any
    number will do.
    """
    from inversion import __version__

    counts = _sums(shard["counts"] for shard in shards)
    images = sum(shard["count"] for shard in shards)
    short = {} if wanted is None else teacher.task.shortfall(counts, wanted, images)
    manifest = {
        "code_version": __version__,
        "method": method,
        "config": asdict(options),
        "seed": seed,
        "teacher": {"model": teacher.spec.model, "weight_hash": teacher_hash},
        "input": teacher.input,
        "counts": counts,
        "short": {str(label): lack for label, lack in short.items()},
        **more,
        "shards": shards,
    }
    write_teacher(out, teacher)
    write_manifest(out, manifest)
    drop_answers(out)  # to other images
