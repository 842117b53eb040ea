"""Transfer sets merged, drawn down, and in the forms that other trainers read.

What is written beside a picture is the task's own (`distill.tasks`).
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.files import write_json
from distill.loop import StepProgress
from distill.names import folder_ending
from distill.options import ExportForm
from distill.sets.transfer_set import (
    DTYPES,
    TransferSet,
    raw_counts,
    shard_name,
    write_manifest,
    write_shard,
)
from distill.tasks.places import count_decisions
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.priority import draw_by_class, draw_chances

PART = ".part"
SHARD = 5000
"""Most images in one file of a set or archive."""
EXPONENT = 0.5
"""Of the priority, in the chance to be drawn, as while synthesising."""

Progress = Callable[[int], None]
"""Told how many images are written."""


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
    tensors = {name: torch.cat([getattr(one, name) for one in sets]) for name in DTYPES}
    tensors["priority"] = torch.cat([_in_units_of_mean(one.priority) for one in sets])
    return _derived(TransferSet(**tensors, manifest=first), "merged", sets)


def _check_same_teacher(first: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    if other["teacher"].get("weight_hash") != first["teacher"].get("weight_hash"):
        raise EchosetError(
            f"{name} was made by another teacher than the first; sets of one teacher can be merged"
        )
    inputs = {key: value for key, value in first["input"].items() if key != "class_names"}
    differing = [key for key, value in inputs.items() if other["input"].get(key) != value]
    if differing:
        raise EchosetError(
            f"{name} was made for another {', '.join(differing)} than the first; it can't be "
            "merged with that"
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
    tensors = {name: getattr(data, name)[drawn] for name in DTYPES}
    part = TransferSet(**tensors, manifest=data.manifest)
    lacking = (quotas - count_decisions(part.groups, classes)).tolist()
    short = {str(label): count for label, count in enumerate(lacking) if count > 0}
    return _derived(part, "drawn", [data], seed=seed, short=short)


def export(
    data: TransferSet, out: str | Path, form: ExportForm = "folder", quiet: bool = True
) -> Path:
    """Write the set for other trainers; whatever stops it, `out` appears whole or not at all.

    folder: one folder of PNGs per class, its name padded with zeros, so that names and classes sort
    alike (torchvision's ImageFolder, timm, Hugging Face's imagefolder). npz: `images` (N,H,W[,C])
    uint8, `labels`, `logits`, `priority`, `mean`, `std`. webdataset: tar archives of .png, .cls and
    .npy (the logits). set: a transfer set again. The other three have its manifest beside them, as
    about.json. Where classes have names, a folder's ends in its class's, and npz has `class_names`.
    """
    out = Path(out)
    is_folder = out.is_dir()  # an empty one may be a mount, or where somebody stands: it stays
    if out.exists() and not (is_folder and _holds_only_a_part(out)):
        raise EchosetError(f"{out} is there already; choose another --out")
    part = out / PART if is_folder else out.with_name(f".{out.name}{PART}")
    shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
    part.mkdir(parents=True)
    try:
        with StepProgress(f"writing {out}", len(data), quiet) as progress:
            WRITERS[form](data, part, progress.update)
        if is_folder:
            _move_into(part, out)
        else:
            os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _holds_only_a_part(folder: Path) -> bool:
    return all(entry.name == PART for entry in folder.iterdir())


def _move_into(part: Path, folder: Path) -> None:
    # The manifest, which makes a set complete, comes last.
    entries = sorted(part.iterdir(), key=lambda entry: entry.name == "manifest.json")
    for entry in entries:
        os.replace(entry, folder / entry.name)


def _derived(
    data: TransferSet, method: str, parts: Sequence[TransferSet], **more: Any
) -> TransferSet:
    """What was put together or drawn from sets, with a manifest that says so, and of each part all
    that its own says.
    """
    shared = ("teacher", "input", "format_version")
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


def _write_folder(data: TransferSet, folder: Path, progress: Progress) -> None:
    task = data.task
    names = data.class_names
    task.check_folders(data.counts())
    for number, picture in _pictures(data):
        label = data.labels[number]
        name = f"{number:06d}"
        place = task.picture_folder(label, data.classes)
        if names and place.isdecimal():  # the class's own
            place += folder_ending(names[int(place)])
        files = {f"{place}/{name}.png": picture, **task.folder_files(label, name)}
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        progress(number + 1)
    _write_about(data, folder)


def _write_npz(data: TransferSet, folder: Path, progress: Progress) -> None:
    arrays = {name: getattr(data, name).numpy() for name in ("labels", "logits", "priority")}
    contract = data.manifest["input"]
    if data.class_names:
        arrays["class_names"] = np.array(data.class_names)
    with open(folder / "set.npz", "wb") as file:
        np.savez(
            file,
            images=_channels_last(data.images),
            **arrays,
            mean=np.array(contract["mean"]),
            std=np.array(contract["std"]),
        )
    _write_about(data, folder)
    progress(len(data))


def _write_webdataset(data: TransferSet, folder: Path, progress: Progress) -> None:
    for index, first in enumerate(range(0, len(data), SHARD)):
        path = folder / f"set-{index:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number, picture in _pictures(data, first, first + SHARD):
                logits = io.BytesIO()
                np.save(logits, data.logits[number].numpy())
                labels = data.task.label_files(data.labels[number])
                files = {"png": picture, **labels, "npy": logits.getvalue()}
                for suffix, content in files.items():
                    _add_file(archive, f"{number:06d}.{suffix}", content)
                progress(number + 1)
    _write_about(data, folder)


def _add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file without owner or time: equal sets give equal bytes."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _write_set(data: TransferSet, folder: Path, progress: Progress) -> None:
    # As it was loaded; what its shards say is kept as the manifest of a part.
    if data.manifest["shards"]:
        data = _derived(data, "copied", [data])
    total = -(-len(data) // SHARD)
    shards = []
    for index in range(total):
        first = len(data) * index // total
        last = len(data) * (index + 1) // total
        tensors = {name: getattr(data, name)[first:last] for name in DTYPES}
        tensors["labels"] = tensors["labels"].to(data.task.label_dtype)
        file = shard_name(index, total)
        digest = write_shard(folder / file, tensors)
        counts = count_decisions(tensors["labels"], data.classes).tolist()
        shards.append(
            {
                "file": file,
                "sha256": digest,
                "count": last - first,
                "counts": counts,
                "seconds": 0.0,
            }
        )
        progress(last)
    write_manifest(folder, {**data.manifest, "shards": shards})


WRITERS: dict[ExportForm, Callable[[TransferSet, Path, Progress], None]] = {
    "folder": _write_folder,
    "npz": _write_npz,
    "webdataset": _write_webdataset,
    "set": _write_set,
}


def _pictures(
    data: TransferSet, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """The number and PNG of each image in the range."""
    for number in range(len(data))[first:last]:
        buffer = io.BytesIO()
        Image.fromarray(_channels_last(data.images[number])).save(buffer, "PNG")
        yield number, buffer.getvalue()


def _channels_last(images: Tensor) -> np.ndarray:  # (…, C, H, W) -> (…, H, W[, 3])
    pixels = images.movedim(-3, -1).contiguous().numpy()
    if pixels.shape[-1] == 1:
        return pixels[..., 0]
    return pixels


def _write_about(data: TransferSet, folder: Path) -> None:
    write_json(folder / "about.json", dict(data.manifest))
