"""One page about scored sets: their scores side by side, how far these can be trusted, and the
sets' pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.files import write_atomically
from distill.tasks.words import Words
from inversion.pages.gallery import Gallery, gallery
from inversion.pages.page import render
from inversion.pages.plots import Plot, bars, histogram, lines, scatter
from inversion.scoring.scorecard import Scorecard
from inversion.scoring.scores import OVERALL, SCORES
from inversion.scoring.validation import ranks


@dataclass(frozen=True)
class Scored:
    """A set with its scorecard."""

    path: str
    images: Tensor  # (N, C, H, W) uint8
    card: Scorecard
    words: Words = Words()


@dataclass(frozen=True)
class SetPart:
    """What the page shows of one set."""

    name: str
    overall: str
    notes: list[str]
    plots: list[Plot]
    gallery: Gallery


@dataclass(frozen=True)
class ValidationPart:
    """What the page shows of how far scores predict."""

    sets: list[tuple[str, ...]]
    plot: Plot
    correlations: list[tuple[str, ...]]
    notes: list[str]


def ranked(sets: Mapping[str, Scored]) -> list[str]:
    """Names by overall, best first."""
    return sorted(sets, key=lambda name: -sets[name].card.overall)


def score_rows(sets: Mapping[str, Scored], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Head and body of the table: scores down, the named sets across."""
    cards = [sets[name].card for name in names]
    rows = [
        ("", *names),
        ("images", *(f"{card.images:,}" for card in cards)),
        ("overall", *(f"{card.overall:.3f}" for card in cards)),
    ]
    for score in SCORES:
        values = [score.text(card.values[score.name]) for card in cards]
        rows.append((score.heading, *values))
    return rows


def validation_rows(validation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Head and body of the table of correlations, the overall first."""
    headings = {score.name: score.heading for score in SCORES}
    rows = [
        ("", "Spearman ρ", "95 % interval", "p", "sets"),
        ("overall ↑", *_correlation(validation["overall"])),
    ]
    for row in validation["scores"]:
        rows.append((headings[row["name"]], *_correlation(row)))
    return rows


def _correlation(row: Mapping[str, Any]) -> tuple[str, ...]:
    sets = str(row["sets"])
    if row["rho"] is None:
        return ("–", "–", "–", sets)
    p = f"{row['p']:.3f}"
    if row["p"] < 0.001:
        p = "< .001"
    return (f"{row['rho']:+.2f}", f"{row['low']:+.2f} to {row['high']:+.2f}", p, sets)


def validation_notes(validation: Mapping[str, Any]) -> list[str]:
    """What to know when reading that table."""
    notes = [validation["caution"]]
    spread = validation["overall"]["one_left_out"]
    if spread:
        notes.append(f"overall's ρ with any one set left out: {spread[0]:+.2f} to {spread[1]:+.2f}")
    original = validation.get("original")
    if original is not None:
        notes.append(f"the original data teaches {original:.2%}; it is not counted")
    return [*notes, validation["method"]]


def write_scores(
    sets: Mapping[str, Scored],
    command: str,
    path: Path,
    validation: Mapping[str, Any] | None = None,
) -> None:
    """Write the page."""
    names = ranked(sets)
    page = render(
        "scores.html.j2",
        title="Echoset scorecard",
        command=command,
        scores=score_rows(sets, names),
        overall=OVERALL,
        validation=_validation(validation) if validation else None,
        parts=[_part(name, sets[name]) for name in names],
        meanings=_meanings(),
    )
    write_atomically(path, page)


def _meanings() -> list[tuple[str, ...]]:
    """Head and body of the table of definitions."""
    rows: list[tuple[str, ...]] = [("score", "what it is", "range", "claimed better", "good")]
    for score in SCORES:
        better = score.better or "–"
        rows.append((score.title, score.definition, score.range, better, score.good))
    return rows


def _validation(validation: Mapping[str, Any]) -> ValidationPart:
    sets = validation["sets"]
    overall = ranks([figures["overall"] for figures in sets.values()])
    accuracy = ranks([figures["accuracy"] for figures in sets.values()])
    plot = scatter(
        "rank by test accuracy against rank by overall, 1 the lowest",
        dict(zip(sets, zip(overall, accuracy, strict=True), strict=True)),
        "rank by overall score",
        "rank by test accuracy",
    )
    return ValidationPart(
        sets=_accuracy_rows(sets),
        plot=plot,
        correlations=validation_rows(validation),
        notes=validation_notes(validation),
    )


def _accuracy_rows(sets: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Head and body of the table of what sets teach, best first."""
    rows: list[tuple[str, ...]] = [("set", "images", "overall", "test accuracy, %", "seeds")]
    for name, figures in sorted(sets.items(), key=lambda item: -item[1]["accuracy"]):
        accuracy = f"{100 * figures['accuracy']:.2f}"
        if figures["accuracy_sd"] is not None:
            accuracy += f" ± {100 * figures['accuracy_sd']:.2f}"
        images = f"{figures['images']:,}"
        rows.append((name, images, f"{figures['overall']:.3f}", accuracy, str(figures["seeds"])))
    return rows


def _part(name: str, scored: Scored) -> SetPart:
    card = scored.card
    images = scored.images.numpy(force=True)
    return SetPart(
        name=name,
        overall=f"{card.overall:.3f}",
        notes=[scored.path, *card.notes],
        plots=_plots(card, scored.words.unit),
        gallery=gallery(images, card.decisions.numpy(), card.classes),
    )


def _plots(card: Scorecard, unit: str) -> list[Plot]:
    title = f"{unit} per class, as the teacher decides"
    plots = [bars(title, card.counts, "class", unit)]
    if card.raw_counts is not None and card.raw_counts != card.counts:
        plots.append(bars("before filtering", card.raw_counts, "class", unit))
    plots.append(histogram("margin p₁ − p₂", card.margins, "margin", unit))
    if not card.readouts:
        return plots
    readout = lines(
        "readout, by images learnt from",
        list(card.readouts),
        {"agreement": list(card.readouts.values())},
        "images learnt from",
        "same decision (%)",
        share=True,
        limits=(0, 1),
    )
    return [*plots, readout]
