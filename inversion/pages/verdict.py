"""What a scorecard says of a set, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inversion.pages.reading import blaming, read_document

SCORES_FILE = "score.json"
"""What `echoset score --out FOLDER/score.html` leaves beside its page."""


def read_verdict(folders: Iterable[Path], manifest: Mapping[str, Any], short: bool = False) -> str:
    """The sentence, of the first score file in these folders that has scored this very set; or in
    `short` the overall score alone. Empty where there is none.
    """
    shards = [shard["sha256"] for shard in manifest["shards"]]
    for folder in folders:
        file = folder / SCORES_FILE
        document = read_document(file)
        with blaming(file):
            for name, card in document.get("sets", {}).items():
                if card["shards"] == shards:
                    if short:
                        return f"{card['overall']:.3f}"
                    return _say(name, card, document)
    return ""


def _say(name: str, card: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    values = card["values"]
    coverage = values["coverage_raw"]
    place = "before filtering"
    if coverage is None:
        coverage = values["coverage"]
        place = "after filtering"
    told = (
        f"The scorecard gives the set {card['overall']:.3f} of 1 overall: class coverage "
        f"{coverage:.3f} {place}, and as much variety as {values['vendi']:.1f} images that have "
        "nothing in common"
    )
    ranked = document["ranked"]
    if len(ranked) == 1:
        return f"{told}."
    return f"{told}. That is place {ranked.index(name) + 1} of {len(ranked)} sets scored with it."
