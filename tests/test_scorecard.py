import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, last_json
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distill import Classifier, ModelSpec, build_classifier, load_images
from distill.models.frozen import Frozen
from distill.runtime import Runtime
from distill.sets.transfer_set import write_manifest, write_shard
from inversion import MNIST_SLICE, ScoreOptions, score
from inversion.cli.main import main, parse
from inversion.scoring import measures
from inversion.scoring.answers import bn_gap, boundary_distances, gather_answers, steadiness
from inversion.scoring.scorecard import content_order
from inversion.scoring.scores import SCORES
from inversion.scoring.validation import rank_test, ranks, spearman, validate
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.views import ViewPlan, views_reference

CPU = torch.device("cpu")
SPEC = ModelSpec("tiny", channels=1, size=8, classes=3, mean=(0.4,), std=(0.5,))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(count, seed=0, side=8):
    return torch.randint(
        256,
        (count, 1, side, side),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.uint8,
    )


@pytest.fixture
def linear():
    """A teacher whose boundaries are known: logits W·x, without BatchNorm."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        network[1].weight.copy_(random(3, 64))
    return Classifier(network, SPEC).eval().requires_grad_(False)


@pytest.fixture
def normed():
    torch.manual_seed(0)
    return build_classifier(replace(SPEC, model="convnet-4")).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def few():
    return load_images(MNIST_SLICE).chosen(torch.arange(240))


# --- each figure against its definition


def entropy_by_hand(shares):
    return -sum(p * math.log(p) for p in shares if p > 0)


def test_coverage_of_known_histograms():
    assert measures.coverage(torch.tensor([9, 0, 0, 0])) == 0
    assert measures.coverage(torch.tensor([5, 5, 5, 5])) == pytest.approx(1)
    assert measures.coverage(torch.tensor([1, 2, 5])) == pytest.approx(
        entropy_by_hand([1 / 8, 2 / 8, 5 / 8]) / math.log(3)
    )


def test_soft_coverage_tells_sure_from_unsure():
    sure, unsure = torch.eye(4).double(), torch.full((4, 4), 0.25).double()
    assert measures.soft_coverage(sure) == pytest.approx((1, 1))
    assert measures.soft_coverage(unsure) == pytest.approx((1, 0))
    answers = random(50, 4).double().softmax(1)
    balance = entropy_by_hand(answers.mean(0).tolist()) / math.log(4)
    spread = np.mean([entropy_by_hand(row) for row in answers.tolist()]) / math.log(4)
    assert measures.soft_coverage(answers) == pytest.approx((balance, balance - spread))


def test_pair_coverage_counts_ordered_pairs():
    first, second = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 1, 0, 1])
    shares = [2 / 4, 1 / 4, 1 / 4]
    assert measures.pair_coverage(first, second, 3) == pytest.approx(
        (3 / 6, math.exp(entropy_by_hand(shares)) / 6)
    )
    every = torch.tensor(list(itertools.permutations(range(3), 2)))
    assert measures.pair_coverage(*every.T, 3) == pytest.approx((1, 1))


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
    one, many = torch.rand(1, 40, generator=random), torch.rand(count, 40, generator=random)
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
    flat, chosen = (
        random(60, 5),
        torch.randint(3, (60,), generator=torch.Generator().manual_seed(1)),
    )
    guess = [int(chosen[12 + (flat[12:] - row).square().sum(1).argmin()]) for row in flat[:12]]
    by_class = [[guess[i] == k for i in range(12) if chosen[i] == k] for k in range(3)]
    assert measures.neighbour_agreement(flat, chosen, 3, 5) == pytest.approx(
        np.mean([np.mean(b) if b else 0 for b in by_class])
    )
    found = measures.readout_curve(flat, chosen, 3)
    assert list(found) == [6, 12, 24, 48]
    for count, agreement in found.items():
        rows, wanted = flat[12 : 12 + count].double().numpy(), np.eye(3)[chosen[12 : 12 + count]]
        centre, level = rows.mean(0), wanted.mean(0)
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


def test_the_distance_to_a_linear_boundary_is_exact(linear):
    images = pixels(20)
    weights, bias = linear.network[1].weight.double() / 0.5, linear.network[1].bias.double()
    flat = images.flatten(1).double() / 255
    logits = (flat - 0.4) @ weights.T + bias
    best = logits.topk(2, 1)
    expected = (best.values[:, 0] - best.values[:, 1]) / (
        weights[best.indices[:, 0]] - weights[best.indices[:, 1]]
    ).norm(dim=1)
    found = boundary_distances(Frozen(linear), images, 7, CPU)
    assert torch.allclose(found.double(), expected.clamp_max(8), rtol=1e-4)


@pytest.mark.parametrize("told", [{"shift": 0.25, "flip": True, "cutout": 0.5}, {"flip": True}, {}])
def test_steadiness_is_the_share_decided_alike_in_a_view(linear, told):
    linear.spec = replace(SPEC, notes={"views": told} if told else {})
    images = pixels(60)
    chosen = linear(images / 255).argmax(1)
    found = steadiness(Frozen(linear), images, chosen, 7, CPU)
    # Views by their definition: nothing cut out. Where nothing is told, a shift of a sixteenth of 8
    # pixels is none.
    plan = ViewPlan(2 if "shift" in told else 0, bool(told))
    seen = views_reference(images, torch.arange(60), torch.zeros(60, dtype=torch.int64), plan, 0)
    assert found == pytest.approx((linear(seen).argmax(1) == chosen).float().mean().item())
    assert (found < 1) == bool(told)


def test_the_gap_is_nothing_for_the_data_that_made_the_statistics(normed):
    images = pixels(300)
    for module in normed.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of all batches, of which there is one
    normed.train()(images.float() / 255)
    normed.eval()
    # Running variances are unbiased, and the smallest maps have 300 · 2 · 2 values.
    assert gather_answers(Frozen(normed), images, 50, CPU, True).gap < 2e-3
    first = next(
        module for module in normed.network.modules() if isinstance(module, nn.BatchNorm2d)
    )
    frozen = Frozen(normed)
    target = frozen.target()
    mean, variance = target.mean.double(), target.variance.double()
    assert bn_gap(frozen, mean, variance) == 0
    far = mean.clone()
    far[0] += 3 * first.running_var[0].sqrt()
    assert bn_gap(frozen, far, variance) == pytest.approx(3 / math.sqrt(2 * len(mean)), rel=1e-5)


def test_the_set_s_moments_are_those_of_one_large_batch(normed):
    images = pixels(90)
    frozen = Frozen(normed)
    _, mean, variance = frozen.with_moments(images.float() / 255)
    assert gather_answers(frozen, images, 32, CPU, True).gap == pytest.approx(
        bn_gap(frozen, mean.double(), variance.double()), rel=1e-4
    )


# --- the whole card


def test_scores_of_real_digits(teacher, few):
    card = score(few.images, teacher, "own", runtime=Runtime(device="cpu", quiet=True))
    assert set(card.values) == {one.name for one in SCORES} and None not in card.values.values()
    assert (card.decisions == few.labels).float().mean() > 0.98
    assert card.counts == torch.bincount(card.decisions, minlength=10).tolist() == card.raw_counts
    assert (
        sum(card.margins) == 240 and card.values["coverage"] > 0.98 and card.values["bn_gap"] < 0.3
    )
    one = score(few.images[card.decisions == 3], teacher, runtime=Runtime(device="cpu", quiet=True))
    assert one.values["coverage"] == 0 and one.overall == 0 and one.values["coverage_raw"] is None
    json.dumps(card.document())


def test_neither_order_nor_chunks_matter(teacher, few):
    card = score(few.images, teacher, runtime=Runtime(device="cpu", quiet=True))
    order = torch.randperm(240, generator=torch.Generator().manual_seed(0))
    again = score(few.images[order], teacher, runtime=Runtime(device="cpu", quiet=True))
    assert again.values == card.values and torch.equal(again.decisions, card.decisions[order])
    other = score(
        few.images, teacher, None, ScoreOptions(batch=37), runtime=Runtime(device="cpu", quiet=True)
    )
    for name, value in other.values.items():
        assert name == "coverage_raw" or card.values[name] == pytest.approx(
            value, rel=1e-4, abs=1e-6
        ), name


def test_samples_are_said(teacher, few):
    card = score(
        few.images,
        teacher,
        options=ScoreOptions(gradients=20, compared=100),
        runtime=Runtime(device="cpu", quiet=True),
    )
    assert "of 20 of the images" in card.notes[0] and "of 100 of the images" in card.notes[1]
    assert max(card.readouts) == 80


def test_equal_images_stay_together():
    order = content_order(torch.cat([pixels(30), pixels(30)]))
    assert all(a % 30 == b % 30 for a, b in order.view(30, 2).tolist())


@settings(max_examples=8)
@given(st.integers(10, 40), st.integers(0, 99), st.sampled_from([0, 1, 255]), st.booleans())
def test_scores_lie_in_their_ranges(count, seed, bright, plain):
    torch.manual_seed(seed)
    network = (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        if plain
        else build_classifier(replace(SPEC, model="convnet-4")).network
    )
    images = (
        pixels(count, seed)
        if bright == 255
        else torch.full((count, 1, 8, 8), bright * 200, dtype=torch.uint8)
    )
    card = score(
        images,
        Classifier(network, SPEC).eval(),
        [0, 1, 2],
        runtime=Runtime(device="cpu", quiet=True),
    )
    for one in SCORES:
        value = card.values[one.name]
        if value is None:
            assert one.name == "bn_gap" and plain
        else:
            assert (
                one.limits[0] - 1e-9
                <= value
                <= (math.inf if one.limits[1] is None else one.limits[1] + 1e-9)
            ), one.name
            assert math.isfinite(value)
    assert 0 <= card.overall <= 1


def test_a_teacher_whose_moments_cannot_be_had_has_no_gap(linear):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(64, 3)

        def forward(self, images):
            return self.head(self.norm(self.norm(images)).flatten(1))

    for network in (linear, Classifier(Twice(), SPEC).eval()):
        card = score(pixels(30), network, runtime=Runtime(device="cpu", quiet=True))
        assert card.values["bn_gap"] is None and card.values["rank"] > 1


@pytest.mark.parametrize(
    "images, raw, message",
    [
        (pixels(20, side=9), None, "read them with load_images"),
        (pixels(20).float(), None, "read them with load_images"),
        (pixels(9), None, "give 10 at least"),
        (pixels(20), [1, 2], "raw_counts should be 3 whole numbers"),
        (pixels(20), [0, 0, 0], "raw_counts should be"),
        (pixels(20), [1, 2, -1], "raw_counts should be"),
    ],
)
def test_what_cannot_be_scored_is_refused(linear, images, raw, message):
    with pytest.raises(EchosetError, match=message):
        score(images, linear, raw, runtime=Runtime(device="cpu", quiet=True))


# --- the honesty test


def test_ranks_share_ties():
    assert ranks([3, 1, 3, 2]).tolist() == [3.5, 1, 3.5, 2]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=9))
def test_spearman_is_pearson_of_ranks(pairs):
    def rank(values):
        return [sum((other < v) + 0.5 * (other == v) for other in values) + 0.5 for v in values]

    one, other = ([pair[side] for pair in pairs] for side in (0, 1))
    found = spearman(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(rank(one), rank(other))[0, 1])


def test_the_p_of_a_perfect_order_counts_all_orders():
    found = rank_test([1, 2, 3, 4], [5, 6, 7, 8])
    assert found["rho"] == pytest.approx(1) and found["p"] == pytest.approx(
        2 / 24
    )  # itself and its reverse
    assert rank_test(range(12), range(12))["p"] < 0.001
    assert rank_test([1, 1, 1], [1, 2, 3])["rho"] is None


def test_validation_turns_round_what_is_better_when_lower(teacher, few):
    card = score(few.images[:40], teacher, runtime=Runtime(device="cpu", quiet=True))
    cards, cells = {}, []
    for step in range(5):
        values = card.values | {
            "duplicates": 1 - step / 10,
            "coverage": step / 10,
            "coverage_raw": step if step > 3 else None,
        }
        cards[f"s{step}"] = replace(card, values=values, overall=step / 5)
        cells += [{"set": f"s{step}", "accuracy": 0.5 + step / 10 + seed / 100} for seed in (0, 1)]
    found = validate(cards, cells)
    rows = {row["name"]: row for row in found["scores"]}
    assert rows["coverage"]["rho"] == pytest.approx(1) and rows["duplicates"][
        "rho"
    ] == pytest.approx(1)
    assert rows["margin"]["rho"] is None and rows["coverage_raw"]["sets"] == 1
    assert found["overall"]["rho"] == pytest.approx(1) and found["overall"][
        "one_left_out"
    ] == pytest.approx([1, 1])
    assert (
        found["sets"]["s1"]["accuracy"] == pytest.approx(0.605)
        and "only 5 sets" in found["caution"]
    )
    with pytest.raises(EchosetError, match="needs 4 sets at least"):
        validate(dict(list(cards.items())[:3]), cells)
    with pytest.raises(EchosetError, match="no student of set 's4'"):
        validate(cards, cells[:8])


# --- the verb


@pytest.fixture(scope="module")
def folder(tmp_path_factory, teacher, few):
    """Four sets: digits, few kinds of digits, digits twice, and a transfer set that says what was
    drawn.
    """
    place = tmp_path_factory.mktemp("sets")
    sets = {
        "digits": few.images[:60],
        "few": few.images[few.labels < 4][:60],
        "twice": few.images[:30].repeat(2, 1, 1, 1),
    }
    for name, images in sets.items():
        np.savez(place / f"{name}.npz", images=images[:, 0].numpy())
    write_set(place / "made" / "set", teacher, few.images[60:120], list(range(10)))
    return place


def write_set(place, teacher, images, raw_counts):
    place.mkdir(parents=True)
    logits = teacher(images.float() / 255).half()
    labels, zero = logits.argmax(1), torch.zeros(len(images))
    tensors = {
        "images": images,
        "labels": labels,
        "logits": logits,
        "priority": zero,
        "round": zero.int(),
    }
    name = "shard-00000-of-00001.safetensors"
    entry = {"file": name, "count": len(images), "sha256": write_shard(place / name, tensors)}
    manifest = {
        "teacher": {"model": "convnet-32", "weight_hash": teacher.weight_hash()},
        "input": teacher.contract,
        "counts": torch.bincount(labels, minlength=10).tolist(),
        "shards": [entry],
        "config": {},
        "code_version": "0",
        "collection": {"raw_counts": raw_counts},
    }
    write_manifest(place, manifest)


def test_sets_are_scored_side_by_side(echoset, folder, tmp_path):
    page = tmp_path / "score.html"
    done = echoset(
        "score",
        folder / "made/set",
        f"kinds={folder / 'few.npz'}",
        folder / "twice.npz",
        "--out",
        page,
        "--json",
    )
    found = last_json(done)
    assert set(found["ranked"]) == set(found["sets"]) == {"made-set", "kinds", "twice"}
    overall = [found["sets"][name]["overall"] for name in found["ranked"]]
    assert overall == sorted(overall, reverse=True)
    assert found["sets"]["made-set"]["values"]["coverage_raw"] == pytest.approx(
        measures.coverage(torch.arange(10))
    )
    assert (
        found["sets"]["twice"]["values"]["duplicates"] == 1
        and found["sets"]["kinds"]["values"]["coverage"] < 0.7
    )
    assert {one["name"] for one in found["definitions"]} == set(found["sets"]["kinds"]["values"])
    assert "class coverage η ↑" in done.stdout and "made-set" in done.stdout
    text = page.read_text()
    assert (
        text.count("data:image/png;base64") > 15
        and "margin p₁ − p₂" in text
        and "before filtering" in text
    )
    assert not re.search(r"(src|href)=.?(https?:|/|\.)|<script", text)
    assert "What the scores are" in text


def test_validation_is_one_command_shared_and_continued(folder, tmp_path, capsys):
    sets = [str(folder / f"{name}.npz") for name in ("digits", "few", "twice")] + [
        str(folder / "made" / "set")
    ]
    flags = [
        "--distillation.steps=3",
        "--distillation.views_per_image=2",
        "--student=convnet-4",
        "--seeds=[4]",
    ]
    common = [
        "score",
        "--validate",
        *sets,
        *flags,
        f"--out={tmp_path / 'v.html'}",
        "--quiet",
        "--json",
    ]
    data = load_images(MNIST_SLICE).chosen(torch.arange(100))
    np.savez(tmp_path / "t.npz", images=data.images[:, 0].numpy(), labels=data.labels.numpy())
    common.append(f"--data={tmp_path / 't.npz'}")
    assert main([*common, "--rank=0", "--world=2"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"complete": False}
    assert main([*common, "--rank=1", "--world=2"]) == 0
    document = json.loads((tmp_path / "v" / "validation.json").read_text())
    found = document["validation"]
    assert len(document["study"]) == 4 and {"command", "device", "torch", "sets"} <= document.keys()
    assert len(found["sets"]) == 4 and all(one["seeds"] == 1 for one in found["sets"].values())
    assert {row["name"] for row in found["scores"]} == {
        one.name for one in SCORES
    } and "only 4 sets" in found["caution"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "v" / "cells").iterdir()}
    assert len(times) == 4 and main(common) == 0
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    text = (tmp_path / "v.html").read_text()
    assert (
        "Do the scores predict?" in text and "rank by test accuracy" in text and "<circle" in text
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "there is nothing to score; name sets"),
        (["/nowhere"], "no data at /nowhere"),
        (
            ["--validate", "a=x.npz", "b=y.npz"],
            "validation needs 4 sets at least, and better 8, got 2",
        ),
        (["x.npz", "--images=-1"], "images must be at least 0"),
    ],
)
def test_mistakes_name_the_fix(arguments, message, capsys):
    assert main(["score", *arguments, "--quiet"]) == 1
    assert message in capsys.readouterr().err


def test_another_teacher_s_set_and_damaged_counts_are_refused(
    folder, teacher, few, tmp_path, capsys
):
    other = Classifier(teacher.network, replace(teacher.spec, mean=(0.5,)))
    write_set(tmp_path / "other", other, few.images[:20], [1] * 10)
    assert main(["score", str(tmp_path / "other"), "--quiet"]) == 1
    assert "made with another mean of the teacher" in capsys.readouterr().err
    write_set(tmp_path / "damaged", teacher, few.images[:20], [1, 2])
    assert main(["score", str(tmp_path / "damaged"), "--quiet"]) == 1
    assert re.search(
        r"damaged/manifest.json: raw_counts should be 10 whole numbers", capsys.readouterr().err
    )


def test_sets_are_named_on_the_command_line(capsys):
    run = parse("score", ["--seed", "3", "--validate", "a/set", "n=b/x.npz", "c/y.npz", "--json"])
    assert run.sets == {"a-set": "a/set", "n": "b/x.npz", "y": "c/y.npz"}
    assert run.seed == 3 and run.validate and run.json
    with pytest.raises(SystemExit) as stopped:
        parse("score", ["n=a", "n=b"])
    assert stopped.value.code == 2
    assert "NAME=b" in capsys.readouterr().err


def test_the_page_has_every_definition():
    text = (ROOT / "docs" / "scorecard.md").read_text()
    for one in SCORES:
        assert f"| {one.heading} | {one.definition} | {one.range} | {one.good} |" in text


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


def test_the_page_should_end_in_html(tmp_path, capsys):
    assert main(["score", str(tmp_path), "--out", str(tmp_path / "page")]) == 1
    assert "should end in .html" in capsys.readouterr().err
