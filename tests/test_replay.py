import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inversion.options import ReplayOptions
from inversion.parts.buffer import GrowingPool, ReplayBuffer
from inversion.parts.sampling import draw_batch, record_visit
from inversion.parts.terms import adversarial_loss, likeness, phi
from synthesis_kernels.errors import EchosetError


def offer(buffer, labels, rank=None, call=0, refresh=1.0, half_life=0.0):
    labels = torch.tensor(labels)
    logits = torch.nn.functional.one_hot(labels, buffer.classes).float() * 9
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    rank = torch.zeros(len(labels)) if rank is None else torch.tensor(rank)
    return int(buffer.add(images, logits, rank, call, refresh, half_life))


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=5),
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=6),
    st.floats(0, 1),
)
@settings(max_examples=60)
def test_no_class_ever_exceeds_its_quota(quotas, batches, refresh):
    if not sum(quotas):
        return
    buffer = ReplayBuffer(quotas, (1, 2, 2))
    offered = torch.zeros(len(quotas), dtype=torch.long)
    for call, labels in enumerate(batches):
        offer(buffer, labels, call=call, refresh=refresh)
        offered += torch.bincount(torch.tensor(labels), minlength=len(quotas))
    # Whatever came, a class holds its quota or all it was offered.
    assert buffer.counts().tolist() == [
        min(q, o) for q, o in zip(quotas, offered.tolist(), strict=True)
    ]
    filled = buffer.filled
    assert (buffer.logits[filled].argmax(1) == buffer.groups[filled]).all()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=25), st.floats(0, 0.6), st.integers(0, 99))
@settings(max_examples=60)
def test_only_what_may_be_learnt_from_is_mixed(labels, held_out, seed):
    buffer = ReplayBuffer([4, 7, 9], (1, 2, 2), held_out)
    offer(buffer, labels)
    buffer.images[:] = torch.arange(101, 122, dtype=torch.uint8).view(
        -1, 1, 1, 1
    )  # the empty and held-out ones are told by these
    may = buffer.filled & ~buffer.is_held_out
    pool = buffer.to_mix(torch.Generator().manual_seed(seed))
    assert torch.equal(pool[may], buffer.images[may])
    assert set(pool.flatten().tolist()) == set(buffer.images[may].flatten().tolist())


def test_better_ranked_candidates_enter_first():
    buffer = ReplayBuffer([2, 2], (1, 2, 2))
    taken = offer(buffer, [0, 0, 0, 1], rank=[0.1, 0.9, 0.5, 0.0], refresh=0.0)
    assert taken == 3
    assert set(buffer.images[buffer.filled][:, 0, 0, 0].tolist()) == {1, 2, 3}


def test_a_full_class_replaces_its_lowest_priority_and_no_more_than_the_share():
    buffer = ReplayBuffer([4], (1, 2, 2))
    offer(buffer, [0] * 4)
    buffer.priority[:4] = torch.tensor([5.0, 1.0, 9.0, 2.0])
    taken = offer(buffer, [0] * 4, rank=[1.0, 2.0, 3.0, 4.0], call=7, refresh=0.5)
    assert taken == 2
    assert (buffer.round[:4] == 7).tolist() == [False, True, False, True]
    assert buffer.images[:4, 0, 0, 0].tolist() == [
        0,
        3,
        2,
        2,
    ]  # slot 1, the worst, got the best candidate
    assert (
        buffer.priority[:4] == torch.tensor([5.0, 9.0, 9.0, 9.0])
    ).all()  # unseen images are drawn soon


@pytest.mark.parametrize("half_life, gone", [(0.0, 1), (10.0, 0)])
def test_priority_fades_with_age_where_one_has_to_go(half_life, gone):
    buffer = ReplayBuffer([3], (1, 2, 2))
    for call in range(3):
        offer(buffer, [0], call=10 * call)
    buffer.priority[:3] = torch.tensor(
        [5.0, 2.6, 4.0]
    )  # at call 20 and with this half-life 1.25, 1.3 and 4
    offer(buffer, [0], call=20, refresh=0.3, half_life=half_life)
    assert buffer.round[:3].tolist() == [20 if slot == gone else 10 * slot for slot in range(3)]


@pytest.mark.parametrize(
    "quotas, held", [([20, 10], 3), ([5] * 6, 3), ([7, 20, 3], 3), ([1] * 30, 0), ([3, 3], 0)]
)
def test_a_part_is_held_out_however_small_the_classes_are(quotas, held):
    buffer = ReplayBuffer(quotas, (1, 2, 2), held_out=0.1)
    assert int(buffer.is_held_out.sum()) == held and not buffer.is_held_out[-1]
    assert len(buffer.to_ask()) == (held or sum(quotas))


@pytest.mark.parametrize(
    "refresh, taken", [(0.3, 60), (0.6, 120), (0.301, 61), (0.001, 1), (0.0, 0)]
)
def test_the_part_that_is_replaced_is_rounded_up_once(refresh, taken):
    buffer = ReplayBuffer([200], (1, 2, 2))
    offer(buffer, [0] * 200)
    assert offer(buffer, [0] * 200, call=1, refresh=refresh) == taken


def test_held_out_images_are_never_drawn():
    buffer = ReplayBuffer([10, 10], (1, 2, 2), held_out=0.2)
    offer(buffer, [0, 1] * 10)
    drawn, weights = draw_batch(
        buffer, 5000, ReplayOptions(), 0.0, torch.Generator().manual_seed(0)
    )
    assert not buffer.is_held_out[drawn].any()
    assert len(drawn.unique()) == 16
    assert weights.max() == 1


def test_sampling_switch_and_beta():
    buffer = ReplayBuffer([4], (1, 2, 2), held_out=0.0)
    offer(buffer, [0] * 4)
    buffer.priority[:4] = torch.tensor([0.0, 1.0, 4.0, 400.0])
    random = torch.Generator().manual_seed(0)
    drawn, _ = draw_batch(buffer, 8000, ReplayOptions(sampling="priority", alpha=1.0), 0.0, random)
    uniform, weights = draw_batch(buffer, 8000, ReplayOptions(sampling="uniform"), 0.0, random)
    assert (drawn == 3).float().mean() > 0.95
    assert torch.bincount(uniform).min() > 1800
    assert (weights == 1).all()


def test_priority_of_a_visit_is_last_weight_times_divergence():
    buffer = ReplayBuffer([3], (1, 2, 2), held_out=0.0)
    offer(buffer, [0] * 3)
    record_visit(buffer, torch.tensor([1, 2]), torch.tensor([4.0, 6.0]), torch.tensor([0.5, 1.0]))
    assert buffer.priority[1:3].tolist() == [4.0, 6.0]  # the first weight is 1
    record_visit(buffer, torch.tensor([1]), torch.tensor([4.0]), torch.tensor([1.0]))
    assert buffer.priority[1] == 2.0


@pytest.mark.parametrize("kind", [ReplayBuffer, GrowingPool])
def test_answers_of_too_many_maps_are_refused_before_memory_is_taken(kind):
    said = r"10,000 images, 3 to each, would .* 21 classes at each of 224 × 224 .*shard_images"
    with pytest.raises(EchosetError, match=said):
        kind([5000] * 2 + [0] * 19, (3, 224, 224), views=2, places=(224, 224))


def test_state_is_whole_but_for_hints():
    shapes = {"views": 2, "hints": [(3, 2, 2), (4, 1, 1)]}
    buffer, copy = (ReplayBuffer([3, 2], (1, 2, 2), **shapes) for _ in range(2))
    offer(buffer, [0, 1, 1])
    for hints in buffer.hints:
        hints.normal_()
    other = ReplayBuffer([3, 2], (1, 2, 2), **shapes)
    copy.load_state_dict(buffer.state_dict())
    other.take_over(copy)
    copy.load_state_dict(buffer.state_dict())
    for same in (copy, other):
        theirs = same.state_dict()
        for name, stored in buffer.state_dict().items():
            assert torch.equal(stored, theirs[name]), name
    other = ReplayBuffer([3, 2], (1, 2, 2), **shapes)
    other.take_over(buffer)
    assert all(map(torch.equal, other.hints, buffer.hints))
    assert other.counts().tolist() == [1, 2] and buffer.counts().tolist() == [0, 0]


def test_phi_by_hand():
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.4, 0.6]]))
    held = torch.tensor([3, 1])
    for gamma in (1.0, 2.0):
        # 1 − 3/4 and 1 − 1/4, each times (1 − p)^γ
        product = torch.tensor([0.25 * 0.2**gamma, 0.75 * 0.4**gamma])
        torch.testing.assert_close(phi(logits, held, 4, gamma), product / product.mean())


def test_adversary_counts_only_where_both_decide_alike():
    teacher = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = adversarial_loss(teacher, student)
    assert loss[0] < 0 and loss[1] == 0


@pytest.mark.parametrize("quotas", [[1, 0, 2], [0, 0, 1]])
def test_fewer_images_than_classes(quotas):
    buffer = ReplayBuffer(quotas, (1, 2, 2))
    offer(buffer, [0, 1, 2, 2, 2])
    assert buffer.counts().tolist() == quotas


def test_a_growing_pool_keeps_what_comes_whatever_its_class():
    pool = GrowingPool([4, 3, 3], (1, 2, 2), held_out=0.3)
    assert offer(pool, [2, 2, 2, 2], call=1) == 4
    assert not pool.full
    assert offer(pool, [0, 2, 1, 2], call=2) == 4
    assert pool.counts().tolist() == [1, 1, 6]
    assert pool.round[:8].tolist() == [1] * 4 + [2] * 4
    assert offer(pool, [1, 1, 1, 1], call=3) == 2  # room for two
    assert pool.full and pool.counts().tolist() == [1, 3, 6]
    assert (pool.logits[:-1].argmax(1) == pool.groups[:-1]).all()
    assert int(pool.is_held_out.sum()) == 3 and not pool.filled[-1]
    drawn, _ = draw_batch(
        pool, 500, ReplayOptions(sampling="uniform"), 0.0, torch.Generator().manual_seed(0)
    )
    assert len(drawn.unique()) == 7


def test_a_new_image_begins_with_nothing_of_the_one_before_it():
    buffer = ReplayBuffer([3], (1, 2, 2))
    offer(buffer, [0] * 3)
    record_visit(
        buffer, torch.arange(3), torch.tensor([1.0, 9.0, 5.0]), torch.tensor([0.1, 0.2, 0.3])
    )
    offer(buffer, [0], call=1, refresh=0.3)
    fresh = buffer.round[:3] == 1
    assert fresh.sum() == 1 and fresh[buffer.visits[:3] == 0].all()
    for name, value in (
        ("weight", 1),
        ("trend", 0),
        ("visits", 0),
        ("priority", 9),
        ("disagreement", 9),
    ):
        assert getattr(buffer, name)[:3][fresh].item() == pytest.approx(value), name


def test_a_growing_pool_asks_held_out_images_it_has_spread_over_all(monkeypatch):
    monkeypatch.setattr(GrowingPool, "MOST_ASKED", 4)
    pool = GrowingPool([100, 100], (1, 2, 2), held_out=0.1)
    assert pool.to_ask().tolist() == [
        9,
        9,
        9,
        9,
    ]  # nothing there yet, and whoever asks leaves out empty slots
    offer(pool, [0] * 50)
    assert pool.to_ask().tolist() == [9, 19, 39, 49]
    offer(pool, [1] * 150)
    assert pool.to_ask().tolist() == [9, 69, 139, 199]


def test_no_image_weighs_more_than_five_times_the_mean():
    logits = torch.zeros(20, 2)
    logits[1:, 0] = 30.0  # nineteen sure ones, and one that is not
    assert phi(logits, torch.zeros(2), 10, 1.0).max() == 5


def test_likeness_is_of_correlations_within_a_class():
    images, wanted = (
        torch.rand(7, 3, 24, 24, dtype=torch.float64),
        torch.tensor([0, 1, 0, 2, 1, 0, 1]),
    )
    blocks = images.view(7, 3, 8, 3, 8, 3).mean((3, 5)).flatten(1)
    correlation = torch.from_numpy(np.corrcoef(blocks.numpy()))
    others = [[j for j in range(7) if i != j and wanted[i] == wanted[j]] for i in range(7)]
    means = [
        (4 * (correlation[i][mine] - 1)).exp().mean() if mine else torch.tensor(0.0)
        for i, mine in enumerate(others)
    ]
    expected = torch.stack(means).mean().log()
    torch.testing.assert_close(likeness(images, wanted), expected)
    # Light and contrast make no difference; a picture shown again does, and so does the lack of any
    # pair.
    torch.testing.assert_close(
        likeness(images * torch.linspace(0.5, 0.9, 7)[:, None, None, None] + 0.1, wanted), expected
    )
    assert (
        abs(likeness(images[:1].expand(7, -1, -1, -1), wanted) - np.log(6 / 7)) < 1e-9
        and expected < -1
    )
    assert likeness(images[:3], torch.arange(3)) < expected
    assert torch.autograd.gradcheck(lambda x: likeness(x, wanted), images.requires_grad_())


def test_likeness_of_blank_images_has_a_small_gradient():
    images = (torch.full((4, 1, 16, 16), 0.5) + 1e-6 * torch.rand(4, 1, 16, 16)).requires_grad_()
    likeness(images, torch.zeros(4)).backward()
    assert images.grad.abs().max() < 1
