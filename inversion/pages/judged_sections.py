"""What a page shows of judged images: accuracy by class, what is taken for what, mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.names import known_names, show_class
from inversion.classes import MOST_NAMED, MOST_ROWS
from inversion.pages.gallery import legend
from inversion.pages.plots import Plot, histogram

BLUE = "37, 99, 235"
RED = "220, 38, 38"
"""Of cells, as CSS has them: right decisions and wrong ones."""
DARK = 0.6
"""From this shade on a cell's figure is white."""
BINS = 20
IMAGES = "images"
"""What is counted where a document says nothing else."""


@dataclass(frozen=True)
class Cell:
    """One figure of the matrix, and its background."""

    text: str
    colour: str
    shade: str
    light: bool
    """Whether the figure is white."""


@dataclass(frozen=True)
class Picture:
    """A small picture and the lines below it."""

    png: str
    lines: list[str]


@dataclass(frozen=True)
class Judged:
    """What the page shows of judged images."""

    title: str
    note: str
    classes: list[tuple[str, ...]]
    more: str
    """What the table of classes leaves out."""
    plots: list[Plot]
    matrix: list[tuple[str, list[Cell]]]
    """Rows by true class; none where classes are too many."""
    pairs: list[tuple[str, ...]]
    """Instead of a matrix: the pairs that are confused most."""
    mistakes: list[Picture]
    mistakes_title: str
    mistakes_note: str
    matrix_note: str = ""
    samples: list[Picture] = field(default_factory=list)
    """Pictures beside label maps."""
    samples_note: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)
    """Colours and names of the classes of these maps."""
    nearest: list[tuple[list[Picture], str]] = field(default_factory=list)
    """An image of the set and a real one, and their correlation."""
    nearest_note: str = ""


def judged_part(document: Mapping[str, Any]) -> Judged | None:
    """What a page shows of this document; nothing of an empty one."""
    if not document:
        return None
    networks = [str(name) for name in document["networks"]]
    names = known_names(document.get("class_names"), document["classes"])
    tested = document["tested"]
    few = document["classes"] <= MOST_ROWS
    samples = [_sample(one) for one in document.get("samples", [])]
    rows, more = _class_rows(document, networks, names)
    return Judged(
        title="Accuracy by class" if tested else "Agreement by class",
        note=_note(document, networks),
        classes=rows,
        more=more,
        plots=[] if few else [_spread(document, networks)],
        matrix=_matrix(document, names) if few else [],
        pairs=[] if few else _pair_rows(document, networks, names),
        mistakes=[_mistake(one, networks, names, tested) for one in document["mistakes"]],
        mistakes_title=f"What the {networks[0]} gets wrong" if tested else "Where they differ",
        mistakes_note=_mistakes_note(document, networks),
        matrix_note=_matrix_note(document),
        samples=samples,
        samples_note=_samples_note(document, networks),
        legend=legend(document["classes"], names) if samples else [],
        nearest=[_neighbours(pair) for pair in document.get("nearest", {}).get("pairs", [])],
        nearest_note=_nearest_note(document),
    )


def class_shares(document: Mapping[str, Any], key: str = "right") -> list[float | None]:
    """The share of right decisions of each class; None for a class without images."""
    shares: list[float | None] = []
    for right, count in zip(document[key], document["counts"], strict=True):
        shares.append(right / count if count else None)
    return shares


def _note(document: Mapping[str, Any], networks: Sequence[str]) -> str:
    images = f"{document['images']:,} images"
    if document["tested"]:
        return f"{images}: {document['data']}. They only judged."
    own, other = networks
    return (
        f"How often the {own} decides as the {other} does, by the {other}'s decision, on {images} "
        f"of {document['data']}. No test data was given."
    )


def _matrix_note(document: Mapping[str, Any]) -> str:
    columns = "Columns: the decision, by the class's number."
    if _unit(document) == IMAGES:
        return f"Rows: what an image is. {columns} Shades: shares of a row."
    return f"Rows: what is there. {columns} Shares of a row's {_unit(document)}."


def _unit(document: Mapping[str, Any]) -> str:
    return str(document.get("unit", IMAGES))


def _sample(one: Mapping[str, Any]) -> Picture:
    return Picture(one["png"], [f"{one['right']:.1%} alike"])


def _samples_note(document: Mapping[str, Any], networks: Sequence[str]) -> str:
    """What stands beside a picture, from left to right."""
    own, *others = networks
    maps = [f"{other}'s map" for other in others]
    if document["tested"]:
        maps = ["labels (black: none)", *(maps if "other_right" in document else [])]
    return (
        f"From left to right: image, {', '.join(maps)}, {own}'s map. Below: how much of the first "
        f"map the {own} decides alike."
    )


def _neighbours(pair: Mapping[str, Any]) -> tuple[list[Picture], str]:
    own = Picture(pair["png"], [pair["class"]])
    return [own, Picture(pair["real"], ["real"])], f"{pair['correlation']:.3f}"


def _nearest_note(document: Mapping[str, Any]) -> str:
    near = document.get("nearest")
    if not near:
        return ""
    return (
        f"Correlation of pixels, of {near['images']:,} images of the set with {near['real']}. Half "
        f"of them have a nearest real image of {near['median']:.2f} or more; 1 would be a copy. "
        "The real images only judged: nothing that made the set saw them."
    )


def _mistakes_note(document: Mapping[str, Any], networks: Sequence[str]) -> str:
    wrong = sum(document["counts"]) - sum(document["right"])
    if document["tested"]:
        return (
            f"{len(document['mistakes'])} of {wrong:,} wrong decisions, evenly spread over the "
            "test data, which only judged."
        )
    return (
        f"{len(document['mistakes'])} of {wrong:,} images on which {' and '.join(networks)} differ."
    )


def _class_rows(
    document: Mapping[str, Any], networks: Sequence[str], names: Sequence[str] | None
) -> tuple[list[tuple[str, ...]], str]:
    """A row a class; of many the ones that fare worst, and what is left out."""
    tested = document["tested"]
    columns = [class_shares(document)]
    if tested and "other_right" in document:
        columns.append(class_shares(document, "other_right"))
    heads = ("class", _unit(document), *(networks[: len(columns)] if tested else ["agreement"]))
    own = columns[0]
    labels = list(range(document["classes"]))
    more = ""
    if len(labels) > MOST_ROWS:
        judged = [label for label in labels if own[label] is not None]
        labels = sorted(judged, key=lambda label: own[label] or 0.0)[:MOST_NAMED]
        more = f"The worst {len(labels)} of {document['classes']:,} classes; "
        more += f"{document['classes'] - len(judged):,} have no images."
    rows = [heads]
    for label in labels:
        shares = [_per_cent(column[label]) for column in columns]
        rows.append((show_class(label, names), f"{document['counts'][label]:,}", *shares))
    return rows, more


def _per_cent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _spread(document: Mapping[str, Any], networks: Sequence[str]) -> Plot:
    """How many classes have which accuracy."""
    heights = [0] * BINS
    for share in class_shares(document):
        if share is not None:
            heights[min(BINS - 1, int(share * BINS))] += 1
    what = f"accuracy of the {networks[0]}" if document["tested"] else "agreement"
    return histogram(f"classes by {what}", heights, what, "classes")


def _matrix(
    document: Mapping[str, Any], names: Sequence[str] | None
) -> list[tuple[str, list[Cell]]]:
    """True class down, decision across; shades are shares of a row."""
    classes = document["classes"]
    counts = [[0] * classes for _ in range(classes)]
    for label, right in enumerate(document["right"]):
        counts[label][label] = right
    for truth, decision, count in document["pairs"]:
        counts[truth][decision] = count
    rows = []
    for label, row in enumerate(counts):
        cells = []
        for decision, count in enumerate(row):
            share = count / max(1, sum(row))
            told = f"{count:,}" if _unit(document) == IMAGES else f"{share:.0%}"
            cells.append(_cell(told if count else "·", share, BLUE if decision == label else RED))
        rows.append((show_class(label, names), cells))
    return rows


def _cell(text: str, share: float, colour: str) -> Cell:
    return Cell(text, colour, f"{share:.2f}", share > DARK)


def _pair_rows(
    document: Mapping[str, Any], networks: Sequence[str], names: Sequence[str] | None
) -> list[tuple[str, ...]]:
    """The pairs that are confused most."""
    truth = "class" if document["tested"] else networks[1]
    rows: list[tuple[str, ...]] = [(truth, "taken for", _unit(document), "share of the class")]
    for label, decision, count in document["pairs"][:MOST_NAMED]:
        share = count / document["counts"][label]
        rows.append(
            (show_class(label, names), show_class(decision, names), f"{count:,}", _per_cent(share))
        )
    return rows


def _mistake(
    one: Mapping[str, Any], networks: Sequence[str], names: Sequence[str] | None, tested: bool
) -> Picture:
    lines = [f"{networks[0]}: {show_class(one['decision'], names)}"]
    truth = show_class(one["truth"], names)
    if tested:
        lines.insert(0, f"is {truth}")
    else:
        lines.append(f"{networks[1]}: {truth}")
    if "other" in one:
        lines.append(f"{networks[1]}: {show_class(one['other'], names)}")
    return Picture(one["png"], lines)
