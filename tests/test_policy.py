"""The learned way to draw: its features, chances and updates against their definitions, and a whole run with it."""

import math
from dataclasses import replace

import pytest
import torch

from distill.files import read_log
from distill.transfer_set import TransferSet
from inversion.options import ReplayOptions
from inversion.policy import EVEN, FEATURES, SPREAD, Policy, features
from inversion.replay import ReplayBuffer
from inversion.report import write_report
from inversion.reweight import draw_batch, record_visit
from inversion.synthesis import synthesize
from synthesis_kernels.errors import EchosetError

RUN = {"seed": 3, "device": "cpu", "precision": "float32", "quiet": True}


def filled_buffer(seed=0):
    random = torch.Generator().manual_seed(seed)
    buffer = ReplayBuffer([8, 8, 8], (1, 2, 2), held_out=0.25)
    logits = torch.randn(24, 3, generator=random) + 5 * torch.nn.functional.one_hot(torch.arange(24) % 3, 3)
    buffer.add(torch.zeros(24, 1, 2, 2, dtype=torch.uint8), logits, torch.zeros(24), 2, 1.0)
    seen = torch.arange(0, 24, 2)
    record_visit(buffer, seen, torch.rand(12, generator=random), torch.ones(12))
    return buffer, buffer.filled & ~buffer.is_held_out


def test_features_are_standardised_over_what_may_be_drawn():
    buffer, allowed = filled_buffer()
    found = features(buffer, 9, allowed)
    assert found.shape == (25, len(FEATURES))
    varied = [i for i, name in enumerate(FEATURES) if name != "age"]  # all images came with the same call
    assert torch.allclose(found[allowed].mean(0), torch.zeros(len(FEATURES)), atol=1e-5)
    assert torch.allclose(found[allowed][:, varied].square().mean(0), torch.ones(len(varied)), atol=1e-4)
    assert (found[:, FEATURES.index("age")] == 0).all()


def test_features_by_hand():
    buffer, allowed = filled_buffer()
    found, chances = features(buffer, 9, allowed), buffer.logits.softmax(1)

    def standard(values):
        return ((values - values[allowed].mean()) / values[allowed].std(correction=0)).clamp(-4, 4)[allowed]

    entropy = torch.tensor([sum(-p * math.log(p) for p in row.tolist()) for row in chances])
    odds = torch.tensor([math.log(max(row) / (1 - max(row))) for row in chances.double().clamp_max(1 - 1e-6).tolist()])
    logs = buffer.disagreement.clamp_min(1e-4).log()
    by_class = torch.stack([logs[allowed & (buffer.labels == label)].mean() for label in range(3)])[buffer.labels]
    expected = {"entropy": entropy, "confidence": odds, "disagreement": logs, "class": by_class}
    expected["visits"] = (1 + buffer.visits).log()
    for name, values in expected.items():
        assert torch.allclose(found[allowed][:, FEATURES.index(name)], standard(values), atol=1e-3), name


def test_chances_follow_the_action_and_never_leave_an_image_out():
    buffer, allowed = filled_buffer()
    policy = Policy("cpu", rate=0.0, start=(2.0, 0, 0, 0, 0, 0, 0))
    policy.begin(torch.Generator().manual_seed(0))
    chances = policy.chances(buffer, 3, allowed)
    assert chances.sum() == pytest.approx(1, abs=1e-5)
    assert (chances[~allowed] == 0).all()
    assert chances[allowed].min() >= EVEN / allowed.sum() * 0.999
    share = (chances[allowed] - EVEN / allowed.sum()).log()
    known = features(buffer, 3, allowed)[allowed][:, 0]
    assert torch.allclose(share - share[0], 2 * (known - known[0]), atol=1e-3)
    drawn, weights = draw_batch(buffer, 4000, ReplayOptions(), 1.0, torch.Generator().manual_seed(1), policy, 3)
    assert allowed[drawn].all()
    # Importance weights undo the draws: weighted, every image counts alike.
    counts = torch.zeros(25).index_add_(0, drawn, weights)[allowed]
    assert (counts / counts.mean() - 1).abs().max() < 0.35


def test_one_pair_of_calls_by_hand():
    policy, random = Policy("cpu", rate=0.5), torch.Generator().manual_seed(0)
    start = policy.theta.clone()
    policy.begin(random)
    first = policy.action
    policy.learn(torch.tensor(0.3))
    policy.begin(random)
    assert torch.allclose(policy.action - start, start - first)  # the mirror image
    assert torch.equal(policy.theta, start)
    policy.learn(torch.tensor(0.1))
    # The first gain is its own scale, so (r₊ − r₋)/(2s) is a half.
    assert torch.allclose(policy.theta, start + 0.5 * SPREAD * 0.5 * (first - start) / SPREAD)


def test_it_climbs_a_reward_that_drifts():
    goal = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0, 2.0, -0.5])
    policy, random = Policy("cpu", rate=0.1), torch.Generator().manual_seed(0)
    far = (policy.theta - goal).norm()
    for call in range(2000):
        policy.begin(random)
        noise = 0.1 * torch.randn((), generator=random)
        policy.learn(-(policy.action - goal).square().sum() - 0.01 * call + noise)
    assert (policy.theta - goal).norm() < far / 3


def test_a_policy_without_a_rate_stays_what_it_is():
    policy, random = Policy("cpu", rate=0.0), torch.Generator().manual_seed(0)
    for reward in (1.0, -1.0, 2.0, 0.5):
        policy.begin(random)
        assert torch.equal(policy.action, policy.theta)
        policy.learn(torch.tensor(reward))
    assert torch.equal(policy.theta, Policy("cpu", 0.1).theta)


def test_a_visit_leaves_disagreement_trend_and_count():
    buffer = ReplayBuffer([3], (1, 2, 2), held_out=0.0)
    buffer.add(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.ones(3, 1), torch.zeros(3), 0, 1.0)
    record_visit(buffer, torch.tensor([0, 0, 1]), torch.tensor([1.0, 2.0, 0.5]), torch.ones(3))
    record_visit(buffer, torch.tensor([0]), torch.tensor([0.5]), torch.ones(1))
    assert buffer.disagreement[:2].tolist() == [0.5, 0.5]
    assert buffer.visits[:3].tolist() == [2, 1, 0]
    assert buffer.trend[0].item() == pytest.approx(math.log(0.5 / 2))
    assert buffer.trend[1].item() == pytest.approx(math.log(0.5))
    assert buffer.trend[2] == 0


def test_a_run_learns_a_policy_and_another_can_start_from_it(teacher, tiny, tmp_path):
    options = replace(tiny, replay=ReplayOptions(sampling="policy"))
    made = synthesize(teacher, options, tmp_path / "set", **RUN)
    learnt = made.manifest["shards"][0]["policy"]
    assert len(learnt) == len(FEATURES) and learnt != list(Policy("cpu", 0.1).theta.tolist())
    calls = read_log(tmp_path / "set" / "log.jsonl")
    assert [round(value, 4) for value in calls[-1]["policy"]] == learnt
    assert all(math.isfinite(call["reward"]) for call in calls)
    page = write_report(tmp_path / "set").read_text()
    assert all(f">{name}</text>" in page for name in FEATURES)

    frozen = replace(tiny, replay=ReplayOptions(sampling="policy", policy=tuple(learnt), policy_rate=0.0))
    again = synthesize(teacher, frozen, tmp_path / "other", **RUN)
    assert again.manifest["shards"][0]["policy"] == learnt
    assert isinstance(again, TransferSet) and again.counts() == made.counts()


def test_a_policy_that_cannot_be_is_refused(teacher, tiny, tmp_path):
    for replay, held_out, message in (
        (ReplayOptions(sampling="policy", policy=(1.0, 2.0)), 0.1, "needs 7 weights .*disagreement.*, got 2"),
        (ReplayOptions(sampling="policy"), 0.0, "held_out must be above 0"),
    ):
        with pytest.raises(EchosetError, match=message):
            synthesize(teacher, replace(tiny, replay=replay, held_out=held_out), tmp_path / "set", **RUN)
