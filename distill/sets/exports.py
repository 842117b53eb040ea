"""Transfer sets merged, drawn down, and in the forms that other trainers read."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.files import write_json
from distill.loop import StepProgress
from distill.options import ExportForm
from distill.sets.transfer_set import (
    DTYPES,
    TransferSet,
    raw_counts,
    shard_name,
    write_manifest,
    write_shard,
)
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.priority import draw_by_class, draw_chances

PART = ".part"
SHARD = 5000
"""Most images in one file of a set or archive."""
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
        if other.manifest["teacher"].get("weight_hash") != first["teacher"].get("weight_hash"):
            raise EchosetError(
                f"{name} was made by another teacher than the first; sets of one teacher can be "
                "merged"
            )
        if differ := [
            key
            for key, value in first["input"].items()
            if other.manifest["input"].get(key) != value
        ]:
            raise EchosetError(
                f"{name} was made for another {', '.join(differ)} than the first; it can't be "
                "merged with that"
            )
    if len(sets) == 1:
        return sets[0]
    tensors = {name: torch.cat([getattr(one, name) for one in sets]) for name in DTYPES}
    means = [one.priority.mean() for one in sets]
    tensors["priority"] = torch.cat(
        [
            one.priority / mean if mean > 0 else torch.ones_like(one.priority)
            for one, mean in zip(sets, means, strict=True)
        ]
    )
    return _derived(TransferSet(**tensors, manifest=first), "merged", sets)


def subsample(data: TransferSet, images: int, seed: int = 0) -> TransferSet:
    """`images` of the set, as many of each class, within a class by priority; in the order they
    had.

    A class with too few leaves its places to the others.
    """
    if not 1 <= images <= len(data):
        raise EchosetError(
            f"images must lie in [1, {len(data)}], the images there are, got {images}"
        )
    quotas = torch.tensor(
        [len(range(label, images, data.classes)) for label in range(data.classes)]
    )
    luck = torch.Generator().manual_seed(seed)
    drawn = (
        draw_by_class(draw_chances(data.priority, EXPONENT), data.labels, quotas, images, luck)
        .sort()
        .values
    )
    part = TransferSet(
        **{name: getattr(data, name)[drawn] for name in DTYPES}, manifest=data.manifest
    )
    lacking = (quotas - torch.tensor(part.counts())).tolist()
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
    about.json.
    """
    out = Path(out)
    inside = out.is_dir()  # an empty folder may be a mount, or where somebody stands: it stays
    if out.exists() and not (inside and all(entry.name == PART for entry in out.iterdir())):
        raise EchosetError(f"{out} is there already; choose another --out")
    part = out / PART if inside else out.with_name(f".{out.name}{PART}")
    shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
    part.mkdir(parents=True)
    try:
        with StepProgress(f"writing {out}", len(data), quiet) as progress:
            WRITERS[form](data, part, progress.update)
        if inside:
            for entry in sorted(
                part.iterdir(), key=lambda entry: entry.name == "manifest.json"
            ):  # which makes a set complete
                os.replace(entry, out / entry.name)
        else:
            os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _derived(
    data: TransferSet, method: str, parts: Sequence[TransferSet], **more: Any
) -> TransferSet:
    """What was put together or drawn from sets, with a manifest that says so, and of each part all
    that its own says.
    """
    counts, raw = data.counts(), [raw_counts(one.manifest) for one in parts]
    shared = ("teacher", "input", "format_version")
    told = [
        {key: value for key, value in one.manifest.items() if key not in shared} for one in parts
    ]
    manifest = {key: data.manifest[key] for key in ("code_version", "teacher", "input")}
    meant = method == "drawn" or max(counts) - min(counts) <= 1
    manifest |= {"method": method, "config": {"balanced": meant, "of": told}}
    if all(isinstance(one, list) and len(one) == data.classes for one in raw):
        manifest["raw_counts"] = [sum(column) for column in zip(*raw, strict=True)]
    return replace(data, manifest={**manifest, "counts": counts, "short": {}, **more, "shards": []})


def _write_folder(data: TransferSet, folder: Path, progress: Callable[[int], None]) -> None:
    if 0 in (counts := data.counts()):
        raise EchosetError(
            f"class {counts.index(0)} has no images, and who reads folders would give its number "
            "to the next; choose --form npz, "
            "webdataset or set"
        )
    digits = len(str(data.classes - 1))
    for label in range(data.classes):
        (folder / f"{label:0{digits}d}").mkdir()
    for number, picture, label in _pictures(data):
        (folder / f"{label:0{digits}d}" / f"{number:06d}.png").write_bytes(picture)
        progress(number + 1)
    _write_about(data, folder)


def _write_npz(data: TransferSet, folder: Path, progress: Callable[[int], None]) -> None:
    arrays = {name: getattr(data, name).numpy() for name in ("labels", "logits", "priority")}
    contract = data.manifest["input"]
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


def _write_webdataset(data: TransferSet, folder: Path, progress: Callable[[int], None]) -> None:
    for first in range(0, len(data), SHARD):
        with tarfile.open(
            folder / f"set-{first // SHARD:05d}.tar", "w", format=tarfile.USTAR_FORMAT
        ) as archive:
            for number, picture, label in _pictures(data, first, first + SHARD):
                logits = io.BytesIO()
                np.save(logits, data.logits[number].numpy())
                for suffix, content in (
                    ("png", picture),
                    ("cls", str(label).encode()),
                    ("npy", logits.getvalue()),
                ):
                    entry = tarfile.TarInfo(
                        f"{number:06d}.{suffix}"
                    )  # without owner or time: equal sets, equal bytes
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
                progress(number + 1)
    _write_about(data, folder)


def _write_set(data: TransferSet, folder: Path, progress: Callable[[int], None]) -> None:
    if data.manifest[
        "shards"
    ]:  # as it was loaded; what its shards say is kept as the manifest of a part
        data = _derived(data, "copied", [data])
    total, shards = -(-len(data) // SHARD), []
    for index in range(total):
        first, last = len(data) * index // total, len(data) * (index + 1) // total
        tensors = {name: getattr(data, name)[first:last] for name in DTYPES}
        file = shard_name(index, total)
        digest = write_shard(folder / file, tensors)
        counts = torch.bincount(tensors["labels"], minlength=data.classes).tolist()
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


WRITERS: dict[str, Callable[[TransferSet, Path, Callable[[int], None]], None]] = {
    "folder": _write_folder,
    "npz": _write_npz,
    "webdataset": _write_webdataset,
    "set": _write_set,
}


def _pictures(
    data: TransferSet, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, bytes, int]]:
    """The number, PNG and class of each image in the range."""
    for number in range(len(data))[first:last]:
        buffer = io.BytesIO()
        Image.fromarray(_channels_last(data.images[number])).save(buffer, "PNG")
        yield number, buffer.getvalue(), int(data.labels[number])


def _channels_last(images: Tensor) -> np.ndarray:  # (…, C, H, W) -> (…, H, W[, 3])
    pixels = images.movedim(-3, -1).contiguous().numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _write_about(data: TransferSet, folder: Path) -> None:
    write_json(folder / "about.json", dict(data.manifest))
