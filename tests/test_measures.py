"""Each figure of a scorecard, against its definition."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring import pixels, random

from inversion.scoring import measures
from inversion.scoring.scorecard import content_order


def entropy_by_hand(shares):
    return -sum(p * math.log(p) for p in shares if p > 0)


def test_coverage_of_known_histograms():
    assert measures.coverage(torch.tensor([9, 0, 0, 0])) == 0
    assert measures.coverage(torch.tensor([5, 5, 5, 5])) == pytest.approx(1)
    assert measures.coverage(torch.tensor([1, 2, 5])) == pytest.approx(
        entropy_by_hand([1 / 8, 2 / 8, 5 / 8]) / math.log(3)
    )


def test_soft_coverage_tells_sure_from_unsure():
    sure = torch.eye(4).double()
    unsure = torch.full((4, 4), 0.25).double()
    assert measures.soft_coverage(sure) == pytest.approx((1, 1))
    assert measures.soft_coverage(unsure) == pytest.approx((1, 0))
    answers = random(50, 4).double().softmax(1)
    balance = entropy_by_hand(answers.mean(0).tolist()) / math.log(4)
    spread = np.mean([entropy_by_hand(row) for row in answers.tolist()]) / math.log(4)
    assert measures.soft_coverage(answers) == pytest.approx((balance, balance - spread))


def test_pair_coverage_counts_ordered_pairs():
    first = torch.tensor([0, 0, 1, 2])
    second = torch.tensor([1, 1, 0, 1])
    shares = [2 / 4, 1 / 4, 1 / 4]
    counts = measures.count_pairs(first, second, 3)
    assert measures.spread_of_pairs(counts, 3) == pytest.approx(
        (3 / 6, math.exp(entropy_by_hand(shares)) / 6)
    )
    every = torch.tensor(list(itertools.permutations(range(3), 2)))
    counts = measures.count_pairs(*every.T, 3)
    assert measures.spread_of_pairs(counts, 3) == pytest.approx((1, 1))


def test_effective_rank_and_vendi_of_orthonormal_features():
    axes = torch.linalg.qr(random(6, 6).double()).Q.float()
    assert measures.effective_rank(torch.cat([axes, -axes])) == pytest.approx(6)
    assert measures.vendi(axes) == pytest.approx(6)
    assert measures.vendi(axes[:4].repeat(5, 1)) == pytest.approx(4)
    assert measures.vendi(torch.ones(7, 6)) == pytest.approx(1)
    assert measures.effective_rank(torch.ones(7, 6) * 0.1) == 1
    assert measures.vendi(torch.zeros(7, 6)) == 1


@pytest.mark.parametrize("count, width", [(40, 7), (7, 40), (5000, 3)])
def test_effective_rank_and_vendi_follow_their_definitions(count, width):
    features = random(count, width) * torch.arange(1, width + 1) + 3
    values = np.linalg.eigvalsh(np.cov(features.double().numpy().T)).clip(0)
    assert measures.effective_rank(features) == pytest.approx(
        math.exp(entropy_by_hand(values / values.sum())), rel=1e-6
    )
    if count < 1000:  # the kernel itself
        unit = features.double().numpy() / np.linalg.norm(
            features.double().numpy(), axis=1, keepdims=True
        )
        values = np.linalg.eigvalsh(unit @ unit.T / count).clip(0)
        assert measures.vendi(features) == pytest.approx(
            math.exp(entropy_by_hand(values)), rel=1e-6
        )


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(0, 99))
def test_a_shared_layout_is_all_of_copies_and_little_of_strangers(count, seed):
    random = torch.Generator().manual_seed(seed)
    one = torch.rand(1, 40, generator=random)
    many = torch.rand(count, 40, generator=random)
    assert measures.shared_layout(one.repeat(count, 1)) == pytest.approx(1)
    by_hand = (
        many.double().mean(0).std(correction=0) / many.double().var(1, correction=0).mean().sqrt()
    )
    assert measures.shared_layout(many) == pytest.approx(min(by_hand.item(), 1))
    assert measures.shared_layout(torch.rand(count, 1).expand(count, 40)) == 0  # plain pictures


def test_a_class_without_images_counts_nothing():
    axes = torch.eye(4)
    assert measures.within_classes(
        measures.vendi, axes, torch.tensor([0, 0, 0, 1]), 4
    ) == pytest.approx((3 + 1) / 4)


def test_duplicates_are_found_where_they_are_planted():
    flat = pixels(50).flatten(1).float() / 255
    assert measures.duplicate_rate(flat, 50) == 0
    flat[40:45] = flat[:5]  # five pairs
    flat[20] = (flat[30] + 0.019).clamp(0, 1)  # one a little brighter
    flat[21] = flat[31] + 0.03  # and one too bright
    apart = (flat[:, None] - flat[None]).square().mean(2).sqrt().fill_diagonal_(1)
    expected = (apart.amin(1) <= 0.02).float().mean().item()
    assert expected == pytest.approx(12 / 50)
    for chunk in (7, 50, 1000):
        assert measures.duplicate_rate(flat, 50, chunk) == pytest.approx(expected)
    assert measures.duplicate_rate(flat, 20, 8) == pytest.approx(
        (apart[:20].amin(1) <= 0.02).float().mean().item()
    )


def test_neighbours_and_readout_agree_with_plain_loops():
    flat = random(60, 5)
    chosen = torch.randint(3, (60,), generator=torch.Generator().manual_seed(1))
    guess = [int(chosen[12 + (flat[12:] - row).square().sum(1).argmin()]) for row in flat[:12]]
    by_class = [[guess[i] == k for i in range(12) if chosen[i] == k] for k in range(3)]
    assert measures.neighbour_agreement(flat, chosen, 3, 5) == pytest.approx(
        np.mean([np.mean(b) if b else 0 for b in by_class])
    )
    result = measures.readout_curve(flat, chosen, 3)
    assert list(result) == [6, 12, 24, 48]
    for count, agreement in result.items():
        rows = flat[12 : 12 + count].double().numpy()
        wanted = np.eye(3)[chosen[12 : 12 + count]]
        centre = rows.mean(0)
        level = wanted.mean(0)
        penalty = 1e-3 * count * rows.var(0).mean() * np.eye(5)
        weights = np.linalg.solve(
            (rows - centre).T @ (rows - centre) + penalty, (rows - centre).T @ (wanted - level)
        )
        told = ((flat[:12].double().numpy() - centre) @ weights + level).argmax(1)
        hits = [told[i] == int(chosen[i]) for i in range(12)]
        assert agreement == pytest.approx(
            np.mean(
                [np.mean([hits[i] for i in range(12) if chosen[i] == k] or [0]) for k in range(3)]
            )
        )


def test_a_readout_learns_what_can_be_learnt_and_no_more():
    images = random(400, 1, 12, 12)
    images[:200, :, :6] *= 3  # restless above or below
    images[200:, :, 6:] *= 3
    shuffle = content_order((images * 20 + 128).clamp(0, 255).to(torch.uint8))
    chosen = (torch.arange(400) >= 200).long()
    features = measures.random_features(images)[shuffle]
    assert features.shape == (400, 1024)
    assert measures.readout_curve(features, chosen[shuffle], 2)[320] > 0.97
    at_random = (random(400, seed=5) > 0).long()
    assert 0.3 < measures.readout_curve(features, at_random, 2)[320] < 0.7
    assert (
        measures.readout_curve(features, torch.zeros(400).long(), 2)[320] == 0.5
    )  # an absent class counts 0


def test_copies_are_no_neighbours():
    random = torch.Generator().manual_seed(0)
    flat = torch.rand(200, 64, generator=random).repeat(2, 1)[torch.randperm(400, generator=random)]
    chosen = (flat[:, :8] * torch.tensor([7.0, 3, 9, 1, 5, 2, 8, 4])).sum(1).mul(
        1e4
    ).long() % 4  # no rule that pixels show
    assert (
        measures.neighbour_agreement(flat, chosen, 4) < 0.45
    )  # a quarter by chance; with copies, nearly all
    assert (
        measures.neighbour_agreement(torch.ones(50, 64), torch.zeros(50, dtype=torch.long), 2) == 0
    )
