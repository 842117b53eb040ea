"""One page about scored sets: their pictures, their scores side by side, and how far the scores can
be trusted.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.files import write_atomically
from inversion.pages.page import bars, gallery, lines, scatter, table, whole
from inversion.scoring.scorecard import BINS, Scorecard
from inversion.scoring.scores import OVERALL, SCORES
from inversion.scoring.validation import ranks


@dataclass(frozen=True)
class Scored:
    """A set with its scorecard."""

    path: str
    images: Tensor  # (N, C, H, W) uint8
    card: Scorecard


def ranked(sets: Mapping[str, Scored]) -> list[str]:
    """Names by overall, best first."""
    return sorted(sets, key=lambda name: -sets[name].card.overall)


def score_rows(sets: Mapping[str, Scored], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Head and body of the table: scores down, the named sets across."""
    cards = [sets[name].card for name in names]
    rows = [("", *names), ("images", *(f"{card.images:,}" for card in cards))]
    rows.append(("overall", *(f"{card.overall:.3f}" for card in cards)))
    return rows + [
        (score.heading, *(score.text(card.values[score.name]) for card in cards))
        for score in SCORES
    ]


def validation_rows(validation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Head and body of the table of correlations, the overall first."""
    headings = {score.name: score.heading for score in SCORES}
    rows = [
        ("overall ↑", validation["overall"]),
        *((headings[row["name"]], row) for row in validation["scores"]),
    ]
    return [
        ("", "Spearman ρ", "95 % interval", "p", "sets"),
        *((name, *_correlation(row)) for name, row in rows),
    ]


def _correlation(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["rho"] is None:
        return ("–", "–", "–", str(row["sets"]))
    p = "< .001" if row["p"] < 0.001 else f"{row['p']:.3f}"
    return (f"{row['rho']:+.2f}", f"{row['low']:+.2f} to {row['high']:+.2f}", p, str(row["sets"]))


def validation_notes(validation: Mapping[str, Any]) -> list[str]:
    """What to know when reading that table."""
    notes, spread, original = (
        [validation["caution"]],
        validation["overall"]["one_left_out"],
        validation.get("original"),
    )
    if spread:
        notes.append(f"overall's ρ with any one set left out: {spread[0]:+.2f} to {spread[1]:+.2f}")
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
    parts = [f"<h1>Echoset scorecard</h1><p class=note><code>{html.escape(command)}</code></p>"]
    parts += [
        f"<h2>Scores</h2><div class=wide>{table(score_rows(sets, ranked(sets)))}</div><p "
        f"class=note>{html.escape(OVERALL)}</p>"
    ]
    parts += [_validation(validation)] if validation else []
    parts += [_one_set(name, sets[name]) for name in ranked(sets)]
    meaning = [("score", "what it is", "range", "claimed better", "good")]
    meaning += [
        (score.title, score.definition, score.range, score.better or "–", score.good)
        for score in SCORES
    ]
    parts.append(f"<h2>What the scores are</h2>{table(meaning)}")
    write_atomically(path, whole("Echoset scorecard", "".join(parts)))


def _validation(validation: Mapping[str, Any]) -> str:
    sets = validation["sets"]
    places = (
        ranks([found[figure] for found in sets.values()]) for figure in ("overall", "accuracy")
    )
    points = dict(zip(sets, zip(*places, strict=True), strict=True))
    rows = [("set", "images", "overall", "test accuracy, %", "seeds")]
    for name, found in sorted(sets.items(), key=lambda item: -item[1]["accuracy"]):
        spread = "" if found["accuracy_sd"] is None else f" ± {found['accuracy_sd']:.2%}"
        accuracy = f"{found['accuracy']:.2%}{spread}".replace("%", "")
        rows.append(
            (name, f"{found['images']:,}", f"{found['overall']:.3f}", accuracy, str(found["seeds"]))
        )
    chart = scatter(
        points,
        "rank by test accuracy, from the lowest, against rank by overall",
        ("lowest overall", "highest overall"),
    )
    notes = "".join(
        f"<p class=note>{html.escape(note)}</p>" for note in validation_notes(validation)
    )
    return f"<h2>Do the scores predict?</h2>{table(rows)}{chart}{table(validation_rows(validation))}{notes}"


def _one_set(name: str, scored: Scored) -> str:
    card = scored.card
    notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in (scored.path, *card.notes))
    classes = [str(label) for label in range(card.classes)]
    charts = bars(card.counts, classes, "images per class, as the teacher decides")
    if card.raw_counts is not None and card.raw_counts != card.counts:
        charts += bars(card.raw_counts, classes, "before filtering")
    charts += bars(
        card.margins, [f"{i / BINS:.2f}" for i in range(BINS)], "margin p₁ − p₂", every=4
    )
    sizes = [str(count) for count in card.readouts]
    charts += lines(
        sizes, {"agreement": list(card.readouts.values())}, "readout, by images learnt from", (0, 1)
    )
    pictures = gallery(scored.images.numpy(force=True), card.decisions.numpy(), card.classes)
    return f"<h2>{html.escape(name)}</h2>{notes}{pictures}<div class=row>{charts}</div>"
