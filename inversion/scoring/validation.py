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
from inversion.scoring.scores import SCORES, Score
from synthesis_kernels.errors import EchosetError

FEWEST_SETS = 4
"""Sets below which nothing is correlated."""
WANTED_SETS = 8
"""Sets below which the result says that they are few."""
DRAWS = 2000
"""Of the bootstrap."""
EXACT = 8
"""Most sets of which all orders are tried."""
ORDERS = 20_000
"""Orders tried of more sets."""
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
    one = one - one.mean(-1, keepdims=True)
    other = other - other.mean(-1, keepdims=True)
    length = np.sqrt((one * one).sum(-1) * (other * other).sum(-1))
    unknown = np.full(length.shape, np.nan)
    return np.divide((one * other).sum(-1), length, where=length > 0, out=unknown)


def rank_test(one: Sequence[float], other: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """ρ with its bootstrap interval and permutation p; the same seed gives the same figures."""
    count = len(one)
    rho = spearman(one, other)
    if rho is None or count < 3:
        return {"rho": None, "low": None, "high": None, "p": None, "sets": count}
    a = np.asarray(one, float)
    b = np.asarray(other, float)
    draws = np.random.default_rng(seed).integers(count, size=(DRAWS, count))
    low, high = np.nanquantile(_correlate(ranks(a[draws]), ranks(b[draws])), (0.025, 0.975))
    by_chance = _correlate(ranks(a), ranks(b)[orders(count)])
    p = float((np.abs(by_chance) >= abs(rho) - 1e-9).mean())
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
    accuracies = {
        name: [cell["accuracy"] for cell in cells if cell["set"] == name] for name in cards
    }
    unfinished = [name for name, values in accuracies.items() if not values]
    if unfinished:
        raise EchosetError(
            f"no student of set '{unfinished[0]}' is finished; run the same command again"
        )
    accuracy = {name: statistics.mean(values) for name, values in accuracies.items()}
    return {
        "sets": {name: _account(cards[name], accuracies[name]) for name in cards},
        "overall": _test_overall(cards, accuracy),
        "scores": [_test_score(score, cards, accuracy) for score in SCORES],
        "method": METHOD,
        "caution": caution(len(cards)),
    }


def _account(card: Scorecard, accuracies: list[float]) -> dict[str, Any]:
    """A set, and the students it taught."""
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return {
        "accuracy": statistics.mean(accuracies),
        "accuracy_sd": deviation,
        "seeds": len(accuracies),
        "images": card.images,
        "overall": card.overall,
    }


def _test_score(
    score: Score, cards: Mapping[str, Scorecard], accuracy: Mapping[str, float]
) -> dict[str, Any]:
    """One score, turned round if lower is claimed to be better, over the sets that have it."""
    sign = -1 if score.better == "lower" else 1
    values = []
    reached = []
    for name, card in cards.items():
        value = card.values[score.name]
        if value is not None:
            values.append(sign * value)
            reached.append(accuracy[name])
    test = rank_test(values, reached)
    return {"name": score.name, "title": score.title, "claim": score.better, **test}


def _test_overall(cards: Mapping[str, Scorecard], accuracy: Mapping[str, float]) -> dict[str, Any]:
    """The overall figure, and what is left of its correlation without any one set."""
    overall = {name: card.overall for name, card in cards.items()}
    test = rank_test(list(overall.values()), list(accuracy.values()))
    rhos = []
    for name in cards:
        rho = _without(overall, accuracy, name)
        if rho is not None:
            rhos.append(rho)
    return {**test, "one_left_out": [min(rhos), max(rhos)] if rhos else None}


def _without(
    overall: Mapping[str, float], accuracy: Mapping[str, float], left_out: str
) -> float | None:
    kept = [name for name in overall if name != left_out]
    return spearman([overall[name] for name in kept], [accuracy[name] for name in kept])


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
    count = f"{sets} sets"
    if sets < WANTED_SETS:
        count = f"only {sets} sets, where {WANTED_SETS} or more are wanted"
    return f"{count}; of {len(SCORES)} scores tested, the best looks better than it is"
