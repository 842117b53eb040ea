"""The honesty test of a scorecard: does a score order sets as the students taught by them do?"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from inversion.scoring.scorecard import Scorecard
from inversion.scoring.scores import SCORES
from synthesis_kernels.errors import EchosetError

FEWEST_SETS, WANTED_SETS = 4, 8
DRAWS = 2000  # of the bootstrap
EXACT, ORDERS = 8, 20_000  # most sets of which all orders are tried, and orders tried of more
METHOD = (
    f"Spearman's rank correlation, tied ranks averaged; 95 % percentile interval of {DRAWS:,} "
    "bootstrap draws over sets; "
    f"two-sided permutation p, over all orders of up to {EXACT} sets and {ORDERS:,} random ones "
    "of more. Scores claimed to be "
    "better when lower are turned round, those that claim nothing are taken as they are. Nothing "
    "is fitted to these sets."
)


def ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:  # (…, N)
    """Ranks from 1 along the last axis, equal values sharing the mean of theirs."""
    values = np.asarray(values, float)
    below = (values[..., :, None] > values[..., None, :]).sum(-1)
    alike = (values[..., :, None] == values[..., None, :]).sum(-1)
    return below + (alike + 1) / 2


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Correlation of the ranks; None where one side is all alike."""
    rho = float(_correlate(ranks(one), ranks(other)))
    return None if math.isnan(rho) else rho


def _correlate(one: np.ndarray, other: np.ndarray) -> np.ndarray:  # (…, N) ranks
    a, b = (side - side.mean(-1, keepdims=True) for side in (one, other))
    length = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), length, where=length > 0, out=np.full(length.shape, np.nan))


def rank_test(one: Sequence[float], other: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """ρ with its bootstrap interval and permutation p; the same seed gives the same figures."""
    rho, count = spearman(one, other), len(one)
    if rho is None or count < 3:
        return {"rho": None, "low": None, "high": None, "p": None, "sets": count}
    one, other = np.asarray(one, float), np.asarray(other, float)
    draws = np.random.default_rng(seed).integers(count, size=(DRAWS, count))
    low, high = np.nanquantile(_correlate(ranks(one[draws]), ranks(other[draws])), (0.025, 0.975))
    found = _correlate(ranks(one), ranks(other)[orders(count)])
    p = float((np.abs(found) >= abs(rho) - 1e-9).mean())
    return {"rho": rho, "low": float(low), "high": float(high), "p": p, "sets": count}


@cache
def orders(count: int) -> np.ndarray:  # (P, count)
    """All orders of a few sets; of many, random ones, the given one among them, so that no p is
    0.
    """
    if count <= EXACT:
        return np.array(list(itertools.permutations(range(count))))
    random = np.random.default_rng(0)
    return np.stack([np.arange(count), *(random.permutation(count) for _ in range(ORDERS))])


def validate(
    cards: Mapping[str, Scorecard],
    cells: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Every score against the mean test accuracy of the students of each set; `cells` as
    `run_study` gives them.
    """
    check_sets(cards)
    found = {name: [cell["accuracy"] for cell in cells if cell["set"] == name] for name in cards}
    if missing := [name for name, values in found.items() if not values]:
        raise EchosetError(
            f"no student of set '{missing[0]}' is finished; run the same command again"
        )
    accuracy = {name: statistics.mean(values) for name, values in found.items()}
    rows = []
    for score in SCORES:
        known = {
            name: card.values[score.name]
            for name, card in cards.items()
            if card.values[score.name] is not None
        }
        sign = -1 if score.better == "lower" else 1
        test = rank_test(
            [sign * value for value in known.values()], [accuracy[name] for name in known]
        )
        rows.append({"name": score.name, "title": score.title, "claim": score.better, **test})
    whole = {name: card.overall for name, card in cards.items()}
    result = rank_test(list(whole.values()), list(accuracy.values()))
    without = [_without(whole, accuracy, name) for name in cards]
    known = [rho for rho in without if rho is not None]
    result |= {"one_left_out": [min(known), max(known)] if known else None}
    return {
        "sets": {
            name: {
                "accuracy": accuracy[name],
                "accuracy_sd": statistics.stdev(found[name]) if len(found[name]) > 1 else None,
                "seeds": len(found[name]),
                "images": cards[name].images,
                "overall": cards[name].overall,
            }
            for name in cards
        },
        "overall": result,
        "scores": rows,
        "method": METHOD,
        "caution": caution(len(cards)),
    }


def _without(
    whole: Mapping[str, float], accuracy: Mapping[str, float], left_out: str
) -> float | None:
    kept = [name for name in whole if name != left_out]
    return spearman([whole[name] for name in kept], [accuracy[name] for name in kept])


def check_sets(names: Collection[str]) -> None:
    """Refuse to correlate over next to nothing."""
    if len(names) < FEWEST_SETS:
        raise EchosetError(
            f"validation needs {FEWEST_SETS} sets at least, and better {WANTED_SETS}, got "
            f"{len(names)} ({', '.join(names)}); "
            "name more of them"
        )


def caution(sets: int) -> str:
    """What so few sets can't show."""
    few = (
        f"only {sets} sets, where {WANTED_SETS} or more are wanted"
        if sets < WANTED_SETS
        else f"{sets} sets"
    )
    return f"{few}; of {len(SCORES)} scores tested, the best looks better than it is"
