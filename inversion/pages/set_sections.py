"""What a report tells of a transfer set: what was made, how even it is, where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.sets.transfer_set import TransferSet
from inversion.classes import class_rows, say_filled, say_short
from inversion.pages.extremes import confidences
from inversion.pages.gallery import Gallery, gallery
from inversion.pages.plots import Section, bars, histogram

GENERATOR = "a generator"
MOST_SHARDS = 8
CONFIDENCE_BINS = 20


@dataclass(frozen=True)
class Made:
    """The first sentence of a report."""

    images: str
    sources: list[str]
    """Where images were chosen from; none if a generator made all."""
    balance: str


@dataclass(frozen=True)
class Origin:
    """How a collected set was chosen."""

    rows: list[tuple[str, ...]]
    note: str


def made(transfer_set: TransferSet) -> Made:
    """What was made, and whether it is balanced."""
    sources = source_names(transfer_set.manifest)
    if sources == [GENERATOR]:
        sources = []
    return Made(f"{len(transfer_set):,}", sources, _balance_sentence(transfer_set))


def source_names(manifest: Mapping[str, Any]) -> list[str]:
    """Where images came from, those of the sets that one was put together of among them."""
    if "collection" in manifest:
        return list(manifest["collection"]["sources"])
    names: list[str] = []
    for part in manifest["config"].get("of") or []:
        names += source_names(part)
    return list(dict.fromkeys(names)) or [GENERATOR]


def _balance_sentence(transfer_set: TransferSet) -> str:
    counts = transfer_set.counts()
    words = transfer_set.task.words
    told = f"{words.spread(counts)} {words.measure} for each of {len(counts)} classes"
    if transfer_set.task.is_balanced(counts):
        rule = f" ({words.balance})" if words.balance else ""
        sentence = f"The set is balanced{rule}: {told}."
    else:
        sentence = f"The set is not balanced: {told}{_missing(transfer_set)}."
    filled = say_filled(transfer_set.manifest)
    return f"{sentence} {filled}." if filled else sentence


def _missing(transfer_set: TransferSet) -> str:
    """Which classes lack images, where some do."""
    short = transfer_set.manifest.get("short", {})
    if not short:
        return ""
    return f"; {say_short(short, transfer_set.class_names)}"


def balance_section(transfer_set: TransferSet) -> Section:
    """The counts of classes, and how sure the teacher is."""
    words = transfer_set.task.words
    unit = words.unit
    counts: list[float] = list(transfer_set.counts())
    what = unit
    if words.shares:
        total = sum(counts)
        counts = [round(100 * count / total, 1) for count in counts]
        what = f"share of {unit} (%)"
    shares = bars(f"{what} per class", counts, "class", what)
    confidence = confidences(transfer_set)
    if confidence is None:
        return Section("Balance", [shares])
    heights, _ = np.histogram(confidence.numpy(), bins=CONFIDENCE_BINS, range=(0, 1))
    title = "the teacher's confidence"
    sure = histogram(title, heights.tolist(), "softmax of the decision", unit)
    return Section("Balance and confidence", [shares, sure])


def set_gallery(transfer_set: TransferSet) -> Gallery:
    """Pictures of the set, by class."""
    images = transfer_set.images.numpy()
    groups = transfer_set.groups.numpy()

    def paint(places: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        painted = transfer_set.task.paint(transfer_set.labels[torch.from_numpy(places)])
        return None if painted is None else painted.numpy()

    return gallery(images, groups, transfer_set.classes, transfer_set.class_names, paint)


def origin(transfer_set: TransferSet) -> Origin | None:
    """What was drawn and taken from each source, where the set was collected."""
    collection = transfer_set.manifest.get("collection")
    if not collection:
        return None
    names = ("class", "drawn", "accepted", *collection["taken"], "missing")
    short = [collection["short"].get(str(label), 0) for label in range(transfer_set.classes)]
    taken = collection["taken"].values()
    columns = [collection["raw_counts"], collection["accepted"], *taken, short]
    return Origin([names, *class_rows(columns, transfer_set.class_names)], _origin_note(collection))


def _origin_note(collection: Mapping[str, Any]) -> str:
    note = (
        f"{collection['drawn']:,} images drawn in {collection['seconds']:.0f} s; class coverage "
        f"{collection['raw_coverage']:.3f} before choosing."
    )
    shares = collection["exposed"].items()
    exposed = [f"{share:.0%} of {address}" for address, share in shares if share]
    if exposed:
        note += f" Shown as figures on black: {', '.join(exposed)}."
    return note


def provenance(summary: Mapping[str, Any], transfer_set: TransferSet) -> list[tuple[str, str]]:
    """How a set came to be, by name; what is not known is left out."""
    manifest = transfer_set.manifest
    teacher = manifest["teacher"]
    rows = [
        ("command", summary.get("command")),
        ("seed", manifest.get("seed")),
        ("device", manifest["shards"][0].get("device")),
        ("teacher", f"{teacher.get('model')}, weights SHA-256 {teacher.get('weight_hash')}"),
        ("echoset", manifest["code_version"]),
        ("torch", summary.get("torch")),
    ]
    for shard in manifest["shards"][:MOST_SHARDS]:
        rows.append((shard["file"], f"SHA-256 {shard['sha256']}"))
    return [(name, str(value)) for name, value in rows if value not in ("", None)]


def options_text(transfer_set: TransferSet) -> str:
    """All options that the set was made with."""
    return json.dumps(transfer_set.manifest["config"], indent=1)
