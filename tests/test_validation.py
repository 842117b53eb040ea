"""The honesty test of a scorecard."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import load_images
from distill.runtime import Runtime
from inversion import MNIST_SLICE, score
from inversion.scoring.validation import rank_test, ranks, spearman, validate
from synthesis_kernels.errors import EchosetError


@pytest.fixture(scope="module")
def few():
    return load_images(MNIST_SLICE).chosen(torch.arange(240))


def test_ranks_share_ties():
    assert ranks([3, 1, 3, 2]).tolist() == [3.5, 1, 3.5, 2]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=9))
def test_spearman_is_pearson_of_ranks(pairs):
    def rank(values):
        return [sum((other < v) + 0.5 * (other == v) for other in values) + 0.5 for v in values]

    one, other = ([pair[side] for pair in pairs] for side in (0, 1))
    result = spearman(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert result is None
    else:
        assert result == pytest.approx(np.corrcoef(rank(one), rank(other))[0, 1])


def test_the_p_of_a_perfect_order_counts_all_orders():
    result = rank_test([1, 2, 3, 4], [5, 6, 7, 8])
    # itself and its reverse
    assert result["rho"] == pytest.approx(1)
    assert result["p"] == pytest.approx(2 / 24)
    assert rank_test(range(12), range(12))["p"] < 0.001
    assert rank_test([1, 1, 1], [1, 2, 3])["rho"] is None


def test_validation_turns_round_what_is_better_when_lower(teacher, few):
    card = score(few.images[:40], teacher, runtime=Runtime(device="cpu", quiet=True))
    cards = {}
    cells = []
    for step in range(5):
        values = card.values | {
            "duplicates": 1 - step / 10,
            "coverage": step / 10,
            "coverage_raw": step if step > 3 else None,
        }
        cards[f"s{step}"] = replace(card, values=values, overall=step / 5)
        cells += [{"set": f"s{step}", "accuracy": 0.5 + step / 10 + seed / 100} for seed in (0, 1)]
    result = validate(cards, cells)
    rows = {row["name"]: row for row in result["scores"]}
    assert rows["coverage"]["rho"] == pytest.approx(1)
    assert rows["duplicates"]["rho"] == pytest.approx(1)
    assert rows["margin"]["rho"] is None
    assert rows["coverage_raw"]["sets"] == 1
    assert result["overall"]["rho"] == pytest.approx(1)
    assert result["overall"]["one_left_out"] == pytest.approx([1, 1])
    assert result["sets"]["s1"]["accuracy"] == pytest.approx(0.605)
    assert "only 5 sets" in result["caution"]
    with pytest.raises(EchosetError, match="needs 4 sets at least"):
        validate(dict(list(cards.items())[:3]), cells)
    with pytest.raises(EchosetError, match="no student of set 's4'"):
        validate(cards, cells[:8])
