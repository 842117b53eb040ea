"""The learned way to draw: its features, chances and updates against their definitions, and a whole
run with it.
"""

import math
from dataclasses import replace

import pytest
import torch

from distill.files import read_log
from distill.models.frozen import Frozen
from distill.runtime import Runtime
from distill.sets.transfer_set import TransferSet
from inversion import plan, synthesize
from inversion.options import ReplayOptions
from inversion.pages.report import write_report
from inversion.parts import adversary as synthesis
from inversion.parts.adversary import DrawStep, adversary_steps
from inversion.parts.buffer import ReplayBuffer
from inversion.parts.policy import EVEN, FEATURES, SPREAD, Policy, features
from inversion.parts.sampling import draw_batch, record_visit
from inversion.parts.state import SynthesisState
from inversion.parts.student_step import StudentStep
from synthesis_kernels.errors import EchosetError

RUN = Runtime(seed=3, device="cpu", precision="float32", quiet=True)


def filled_buffer(seed=0):
    random = torch.Generator().manual_seed(seed)
    buffer = ReplayBuffer([8, 8, 8], (1, 2, 2), held_out=0.25)
    logits = torch.randn(24, 3, generator=random) + 5 * torch.nn.functional.one_hot(
        torch.arange(24) % 3, 3
    )
    for call, part in ((2, slice(0, 15)), (6, slice(15, 24))):
        count = len(logits[part])
        buffer.add(
            torch.zeros(count, 1, 2, 2, dtype=torch.uint8),
            logits[part],
            torch.zeros(count),
            call,
            1.0,
        )
    for every in (2, 3):  # some are seen twice, some once, some never
        seen = torch.arange(0, 24, every)
        record_visit(buffer, seen, torch.rand(len(seen), generator=random), torch.ones(len(seen)))
    return buffer, buffer.filled & ~buffer.is_held_out


def test_features_are_standardised_over_what_may_be_drawn():
    buffer, allowed = filled_buffer()
    found = features(buffer, 9, allowed)
    assert found.shape == (25, len(FEATURES))
    assert torch.allclose(found[allowed].mean(0), torch.zeros(len(FEATURES)), atol=1e-5)
    assert torch.allclose(found[allowed].square().mean(0), torch.ones(len(FEATURES)), atol=1e-4)
    buffer.round.fill_(4)
    assert (
        features(buffer, 9, allowed)[:, FEATURES.index("age")] == 0
    ).all()  # says nothing where all are alike


def test_features_by_hand():
    buffer, allowed = filled_buffer()
    found, chances = features(buffer, 9, allowed), buffer.logits.softmax(1)

    def standard(values):
        return ((values - values[allowed].mean()) / values[allowed].std(correction=0)).clamp(-4, 4)[
            allowed
        ]

    entropy = torch.tensor([sum(-p * math.log(p) for p in row.tolist()) for row in chances])
    odds = torch.tensor(
        [
            math.log(max(row) / (1 - max(row)))
            for row in chances.double().clamp_max(1 - 1e-6).tolist()
        ]
    )
    logs = buffer.disagreement.clamp_min(1e-4).log()
    by_class = torch.stack([logs[allowed & (buffer.groups == label)].mean() for label in range(3)])[
        buffer.groups
    ]
    expected = {"entropy": entropy, "confidence": odds, "disagreement": logs, "class": by_class}
    expected |= {
        "visits": (1 + buffer.visits).log(),
        "age": (10.0 - buffer.round).log(),
        "trend": buffer.trend,
    }
    assert expected.keys() == set(FEATURES) and len(buffer.trend.unique()) > 3
    for name, values in expected.items():
        assert torch.allclose(
            found[allowed][:, FEATURES.index(name)], standard(values), atol=1e-3
        ), name


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
    drawn, weights = draw_batch(
        buffer, 40_000, ReplayOptions(), 1.0, torch.Generator().manual_seed(1), policy, 3
    )
    assert allowed[drawn].all()
    # Importance weights undo the draws: weighted, every image counts alike.
    counts = torch.zeros(25).index_add_(0, drawn, weights)[allowed]
    assert (counts / counts.mean() - 1).abs().max() < 0.15


def test_one_pair_of_calls_by_hand():
    policy, random = Policy("cpu", rate=0.5), torch.Generator().manual_seed(0)
    start = policy.theta.clone()
    policy.begin(random)
    first = policy.action.clone()
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
    assert (buffer.trend[1:3] == 0).all()  # nothing was known of it before


def test_a_run_learns_a_policy_and_another_can_start_from_it(teacher, tiny, tmp_path):
    options = replace(tiny, replay=ReplayOptions(sampling="policy"))
    made = synthesize(teacher, options, tmp_path / "set", runtime=RUN)
    learnt = made.manifest["shards"][0]["policy"]
    assert len(learnt) == len(FEATURES) and learnt != list(Policy("cpu", 0.1).theta.tolist())
    calls = read_log(tmp_path / "set" / "log.jsonl")
    assert [round(value, 4) for value in calls[-1]["policy"]] == learnt
    assert all(math.isfinite(call["reward"]) for call in calls)
    page = write_report(tmp_path / "set").read_text()
    assert all(f">{name}</text>" in page for name in FEATURES)

    frozen = replace(
        tiny, replay=ReplayOptions(sampling="policy", policy=tuple(learnt), policy_rate=0.0)
    )
    again = synthesize(teacher, frozen, tmp_path / "other", runtime=RUN)
    assert again.manifest["shards"][0]["policy"] == learnt
    assert isinstance(again, TransferSet) and again.counts() == made.counts()


def test_a_policy_that_cannot_be_is_refused(teacher, tiny, tmp_path):
    for replay, held_out, message in (
        (
            ReplayOptions(sampling="policy", policy=(1.0, 2.0)),
            0.1,
            r"needs 7 weights .*disagreement.*, got \[1.0, 2.0\]",
        ),
        (ReplayOptions(sampling="policy", policy=(math.nan,) * 7), 0.4, "needs 7 weights"),
        (ReplayOptions(sampling="policy"), 0.0, "of 30 images is none; raise held_out"),
        (ReplayOptions(sampling="policy"), 0.03, "of 30 images is none; raise held_out"),
    ):
        with pytest.raises(EchosetError, match=message):
            synthesize(
                teacher,
                replace(tiny, replay=replay, held_out=held_out),
                tmp_path / "set",
                runtime=RUN,
            )
    with pytest.raises(EchosetError, match="draws are by priority"):
        ReplayOptions(policy=(1.0,) * 7)
    with pytest.raises(EchosetError, match="policy_rate must be a number of at least 0"):
        ReplayOptions(policy_rate=-1.0)


def test_the_reward_is_what_held_out_divergence_loses(teacher, tiny, monkeypatch):
    """Held-out images are asked before and after a call's steps; here they find a divergence of 3
    and then of 1.
    """
    options = replace(tiny, replay=ReplayOptions(sampling="policy"))
    state = SynthesisState(teacher, plan(options, 10)[0], options, torch.device("cpu"))
    state.buffer.filled[:-1] = True
    found = iter([torch.tensor(3.0), torch.tensor(1.0)])
    monkeypatch.setattr(synthesis, "ask_held_out", lambda *_: (torch.tensor(0.5), next(found)))
    train = StudentStep(state.adversary, 20.0, torch.float32)
    figures = adversary_steps(DrawStep(train, Frozen(teacher), state, options, torch.float32))
    assert figures["reward"].item() == pytest.approx(math.log(3))
    assert state.policy.first_reward == figures["reward"]
