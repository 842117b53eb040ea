"""Draws by priority, in every form, against their definition and their chances."""

import pytest
import torch
from conftest import needs_native
from forms import FEW
from hypothesis import given, settings
from hypothesis import strategies as st

from synthesis_kernels.backend import kernel_form
from synthesis_kernels.priority import (
    Visited,
    _race,
    draw,
    draw_by_class,
    draw_chances,
    draw_distinct,
    importance_weights,
    race_keys_reference,
    record_visits,
    record_visits_reference,
)


def test_draws_follow_the_chances_and_weights_undo_them():
    priority = torch.tensor([0.0, 1.0, 4.0, 9.0, 100.0])
    allowed = torch.tensor([True, True, True, True, False])
    chances = draw_chances(priority, 0.5, allowed, floor=0.0)
    torch.testing.assert_close(chances, torch.tensor([0, 1, 2, 3, 0]) / 6.0)
    drawn = draw(chances, 60_000, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=5) / len(drawn)
    torch.testing.assert_close(share, chances, atol=0.01, rtol=0)
    # With β = 1 the weighted average of any value is the plain average over what can be drawn.
    value = torch.tensor([9.0, 2.0, 4.0, 6.0, 9.0])
    weights = importance_weights(chances, drawn, beta=1.0)
    assert abs((weights * value[drawn]).sum() / weights.sum() - 4.0) < 0.05
    assert weights.max() == 1


def test_exponent_zero_is_uniform():
    torch.testing.assert_close(
        draw_chances(torch.tensor([0.0, 5.0, 50.0]), 0.0), torch.full((3,), 1 / 3)
    )


def test_race_keys_equal_their_definition(device):
    chances = torch.rand(3000, device=device) * (torch.rand(3000, device=device) > 0.2)
    keys = _race(chances, torch.Generator(device).manual_seed(1))
    luck = torch.rand(3000, generator=torch.Generator(device).manual_seed(1), device=device)
    torch.testing.assert_close(keys, race_keys_reference(chances, luck), rtol=1e-6, atol=0)


@given(
    chances=st.lists(st.sampled_from([0.0, 0.1, 1.0, 5.0]), min_size=1, max_size=12),
    count=st.data(),
)
@FEW
def test_distinct_draws_never_repeat_and_take_the_impossible_last(device, chances, count):
    count = count.draw(st.integers(1, len(chances)))
    drawn = draw_distinct(
        torch.tensor(chances, device=device), count, torch.Generator(device).manual_seed(count)
    )
    assert len(set(drawn.tolist())) == count
    possible = sum(chance > 0 for chance in chances)
    assert sum(chances[i] > 0 for i in drawn.tolist()) == min(count, possible)


def test_the_first_distinct_draw_follows_the_chances():
    chances, generator = torch.tensor([0.1, 0.0, 0.2, 0.7]), torch.Generator().manual_seed(0)
    with kernel_form("reference"):
        drawn = torch.stack([draw_distinct(chances, 2, generator) for _ in range(4000)])
    torch.testing.assert_close(
        torch.bincount(drawn[:, 0], minlength=4) / 4000, chances, atol=0.03, rtol=0
    )
    # And the second, without the first: P(j | i) = P(j)/(1 − P(i)).
    after = drawn[drawn[:, 0] == 3, 1]
    torch.testing.assert_close(
        torch.bincount(after, minlength=4) / len(after),
        torch.tensor([1 / 3, 0, 2 / 3, 0]),
        atol=0.04,
        rtol=0,
    )


@given(
    data=st.data(), classes=st.integers(1, 4), count=st.integers(1, 14), seed=st.integers(0, 999)
)
@settings(FEW, max_examples=60)
def test_draws_by_class_meet_the_quotas(data, classes, count, seed):
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    chances = data.draw(st.lists(st.sampled_from([0.0, 0.2, 3.0]), min_size=count, max_size=count))
    wanted = data.draw(
        st.lists(st.integers(0, classes - 1), max_size=count)
    )  # the class of every place
    quotas, total = [wanted.count(c) for c in range(classes)], len(wanted)
    drawn = draw_by_class(
        torch.tensor(chances),
        torch.tensor(labels),
        torch.tensor(quotas),
        total,
        torch.Generator().manual_seed(seed),
    ).tolist()
    assert len(drawn) == len(set(drawn)) == total
    candidates = [
        sum(chance > 0 and label == c for chance, label in zip(chances, labels, strict=True))
        for c in range(classes)
    ]
    taken = [sum(chances[i] > 0 and labels[i] == c for i in drawn) for c in range(classes)]
    assert all(t >= min(q, n) for t, q, n in zip(taken, quotas, candidates, strict=True))
    if all(n >= q for q, n in zip(quotas, candidates, strict=True)):
        assert taken == quotas
    assert sum(taken) == min(total, sum(candidates))


def test_draws_within_a_class_follow_the_chances():
    chances, labels = torch.tensor([1.0, 3.0, 50.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1, 0])
    generator, quotas = torch.Generator().manual_seed(0), torch.tensor([1, 1])
    drawn = torch.cat([draw_by_class(chances, labels, quotas, 2, generator) for _ in range(3000)])
    share = torch.bincount(drawn, minlength=5) / 3000
    torch.testing.assert_close(
        share, torch.tensor([1 / 6, 1 / 2, 50 / 52, 2 / 52, 1 / 3]), atol=0.04, rtol=0
    )


@pytest.mark.parametrize("count", [1, 7, 40])
def test_visits_leave_what_their_definition_says(device, count):
    """Some slots are drawn several times, in any order, some for the first time."""
    generator = torch.Generator().manual_seed(count)
    slots = 23
    numbers = torch.rand(5, slots, generator=generator)
    numbers[4] = torch.randint(0, 3, (slots,), generator=generator)
    numbers[2, ::5] = 0
    importance = torch.rand(slots, generator=generator)
    ours = Visited(*numbers.clone().to(device))
    exact = Visited(*numbers.clone())
    for _ in range(3):
        drawn = torch.randint(slots, (count,), generator=generator)
        apart = torch.rand(count, generator=generator)
        record_visits_reference(exact, drawn, apart, importance[drawn])
        record_visits(ours, *(x.to(device) for x in (drawn, apart, importance[drawn])))
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found.cpu(), expected)


@needs_native
def test_a_visit_of_no_slot_is_refused():
    kept = Visited(*torch.zeros(5, 3))
    with kernel_form("native"), pytest.raises(IndexError):
        record_visits(kept, torch.tensor([0, 3]), torch.ones(2), torch.ones(2))
    assert not kept.visits.any()
