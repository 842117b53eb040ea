"""What a set is, in words, for those whom it is handed to: a data set's card."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from distill.names import printable, show_class
from distill.options import ExportForm
from distill.sets.forms.content import Content
from distill.sets.transfer_set import TransferSet

CARD = "README.md"
UNKNOWN = "unknown"
"""The licence where none is given, as Hugging Face calls it."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGEST = "1M<n<10M"
FEW = 100
"""Classes that are listed one by one."""
FILES: dict[ExportForm, dict[str, str]] = {
    "folder": {},
    "npz": {},
    "webdataset": {
        "_info.json": "how many are in which archive, for timm",
    },
    "set": {
        "shard-*.safetensors": "the set itself, for echoset",
        "manifest.json": "every option that the set was made with",
    },
}
ARCHIVES = "set-*.tar"
LOGITS = "the teacher's logits of each picture, in the order of their paths, which are its `files`"
"""What answers.npz of a folder holds."""


def write_card(content: Content, form: ExportForm, folder: Path, license: str, notes: str) -> None:
    """Write README.md: how the set was made, what is in it, and what may be done with it."""
    parts = [
        _head(content, form, license),
        _what(content),
        _files(form, content),
        _made(content.data),
        _balance(content.data),
        f"## Scores\n\n{notes}" if notes else "",
        _license(license),
    ]
    text = "\n\n".join(part for part in parts if part)
    (folder / CARD).write_text(f"{text}\n", encoding="utf-8")


def _head(content: Content, form: ExportForm, license: str) -> str:
    """What Hugging Face reads of a card."""
    words = content.data.task.words
    head: dict[str, Any] = {
        "license": license,
        "pretty_name": _title(content.data),
        "task_categories": [words.category],
        "tags": ["synthetic", "knowledge-distillation"],
        "size_categories": [_size(len(content))],
    }
    if form == "folder":
        loaded = words.loaded if isinstance(words.loaded, str) else list(words.loaded)
        head["configs"] = [{"config_name": "default", "data_files": loaded}]
    if form == "webdataset":
        head["configs"] = [{"config_name": "default", "data_files": ARCHIVES}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False).strip()}\n---"


def _size(count: int) -> str:
    return next((name for end, name in SIZES if count < end), LARGEST)


def _title(data: TransferSet) -> str:
    network = printable(str(data.manifest["teacher"].get("model", "a network")))
    return f"What {network} knows, in pictures"


def _what(content: Content) -> str:
    data = content.data
    channels, height, width = data.images.shape[1:]
    lines = [
        f"# {_title(data)}",
        f"{len(data):,} synthetic images, {channels}×{height}×{width}, of {data.classes} classes, "
        f"with the {_told(data)} of the trained network that they were made from. "
        f"{data.task.words.label}",
    ]
    if content.views:
        lines.append(f"The pictures are {content.views} views of each image.")
    if data.answers is None:
        told = "answers to the images alone and none to views of them"
        if not data.has_logits:
            told = "labels alone, and no answers"
        lines.append(f"It has {told}, so a student learns less from it than it could.")
    else:
        shown = {name: value for name, value in asdict(data.answers.views).items() if value}
        told = ", ".join(f"{name} {value}" for name, value in shown.items()) or "unchanged"
        lines.append(
            f"It has answers to {data.answers.per_image} views of each image ({told}; seed "
            f"{data.answers.seed})."
        )
    mean, std = (data.manifest["input"][name] for name in ("mean", "std"))
    lines.append(f"The network takes pixels in [0, 1], less mean {mean}, divided by std {std}.")
    return "\n\n".join(lines)


def _told(data: TransferSet) -> str:
    """What there is of the network's."""
    return "answers" if data.has_logits or data.answers else "labels"


def _files(form: ExportForm, content: Content) -> str:
    data = content.data
    arrays = ["images", "labels"]
    if data.has_logits:
        arrays.append("logits")
    if data.answers:
        arrays.append("answers to views")
    rows = {
        **_own_files(form, content),
        **FILES[form],
        "set.npz": f"{', '.join(arrays)}, for NumPy",
        "train_elsewhere.py": "trains a student on `set.npz`, with numpy and torch alone",
    }
    if form != "set":
        rows["about.json"] = "every option that the set was made with"
    table = [f"| `{name}` | {text} |" for name, text in rows.items()]
    return "\n".join(["| file | holds |", "| --- | --- |", *table])


def _own_files(form: ExportForm, content: Content) -> dict[str, str]:
    """Those that the task has a say in, and where logits are kept theirs."""
    words = content.data.task.words
    has_logits = bool(content.views) or content.data.has_logits
    if form == "webdataset":
        logits = " and .npy (the teacher's logits)" if has_logits else ""
        return {ARCHIVES: f"archives of .png, {words.archive}{logits}"}
    if form != "folder":
        return {}
    return {**words.folder, "answers.npz": LOGITS} if has_logits else dict(words.folder)


def _made(data: TransferSet) -> str:
    """Where it comes from."""
    manifest = data.manifest
    teacher = manifest["teacher"]
    rows: dict[str, Any] = {
        "recipe": manifest.get("method"),
        "seed": manifest.get("seed"),
        "sources": ", ".join((manifest.get("collection") or {}).get("sources", ())),
        "network": teacher.get("model"),
        "SHA-256 of its weights": teacher.get("weight_hash"),
        "echoset": manifest.get("code_version"),
    }
    lines = [f"- {name}: {value}" for name, value in rows.items() if value not in (None, "")]
    return "\n".join(["## How it was made", "", *lines])


def _balance(data: TransferSet) -> str:
    counts = data.counts()
    words = data.task.words
    lines = ["## Balance", "", f"{words.spread(counts)} {words.measure} of each class."]
    short = data.manifest.get("short") or {}
    if short:
        names = data.class_names
        named = {show_class(int(label), names): count for label, count in short.items()}
        lacks = ", ".join(f"{count} of class {name}" for name, count in named.items())
        lines += ["", f"Less than was asked for, in images: {lacks}."]
    for way, rows in data.manifest.get("filled", {}).items():
        if sum(rows):
            lines += ["", f"Made of the other images for short classes, by `{way}`: {sum(rows):,}."]
    if data.classes <= FEW:
        lines += ["", f"| class | {words.heading} |", "| --- | --- |"]
        for label, count in enumerate(counts):
            name = show_class(label, data.class_names).replace("|", "\\|")
            lines.append(f"| {name} | {words.tell(count, sum(counts))} |")
    return "\n".join(lines)


def _license(license: str) -> str:
    if license != UNKNOWN:
        return f"## License\n\n{license}"
    return (
        "## License\n\nNone was given. The images are made from a network, whose own license may "
        "say what may be done with them; `echoset export --license NAME` puts one here."
    )
