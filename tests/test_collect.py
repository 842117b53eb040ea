"""Collecting from sources, against a walk by hand."""

import dataclasses
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from collecting import (
    PLAIN,
    answers_of,
    linear_teacher,
    make,
    save_pictures,
    shard_bytes,
)
from PIL import Image
from walk_by_hand import naive_walk

from distill import TransferSet
from inversion.options import CollectOptions
from inversion.sources.stream import DrawnSource, open_source


@pytest.fixture(scope="module")
def linear():
    return linear_teacher()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("pictures") / "some.npz")


CASES = {
    "balanced": (("noise",), {}),
    "unbalanced": (("noise",), {"balanced": False}),
    "uneven": (("noise",), {"images": 41}),
    "fewer images than classes": (("noise",), {"images": 3, "draws": 200.0}),
    "several shards": (("noise",), {"shard_images": 15}),
    "confidence": (("noise",), {"confidence": (0.4, 0.7)}),
    "margin": (("shaders",), {"margin": (0.1, 0.5)}),
    "unbalanced margin": (
        ("shaders",),
        {"margin": (0.1, 0.15), "balanced": False, "images": 200, "draws": 5.0},
    ),
    "only": (("shaders",), {"only": (1, 3)}),
    "exposed": (("noise",), {"expose": 0.5}),
    "two sources": (("shaders", "noise"), {"draws": 20.0}),
    "too few": (("noise",), {"draws": 5.0, "images": 60}),
    "pictures": (("PICTURES", "gaussian"), {"draws": 60.0}),
}


@pytest.fixture(scope="module", params=CASES)
def walked(request, linear, pictures, tmp_path_factory):
    """A collection of each kind: the set, its folder and options, and what a walk by hand comes
    to.
    """
    sources, change = CASES[request.param]
    sources = tuple(pictures if source == "PICTURES" else source for source in sources)
    options = replace(PLAIN, **change)
    folder = tmp_path_factory.mktemp("walked") / "set"
    return (
        make(linear, sources, options, folder, seed=2),
        folder,
        options,
        naive_walk(linear, sources, options, 2),
        sources,
    )


def test_a_collection_is_what_a_walk_by_hand_comes_to(walked):
    result, _, _, (images, expected), sources = walked
    assert torch.equal(result.images, images)
    said = result.manifest["collection"]
    assert {name: said[name] for name in expected} == expected
    assert said["sources"] == list(sources)
    assert result.manifest["short"] == expected["short"]
    share = np.array(said["raw_counts"]) / said["drawn"]
    assert said["raw_coverage"] == pytest.approx(
        -(share * np.log(share + 1e-300)).sum() / math.log(4), abs=1e-4
    )


def test_labels_and_logits_are_the_teachers_own(walked, linear):
    result, folder, options, _, _ = walked
    answers = answers_of(linear, result.images)
    assert answers.argmax(1).tolist() == result.labels.tolist()
    np.testing.assert_allclose(result.logits.float().numpy(), answers, rtol=2e-3, atol=2e-3)
    odds = np.exp(answers - answers.max(1, keepdims=True))
    first, second = np.sort(odds / odds.sum(1, keepdims=True), 1)[:, :-3:-1].T
    for value, (low, high) in ((first, options.confidence), (first - second, options.margin)):
        assert (value >= low - 1e-6).all()
        assert (value <= high + 1e-6).all()
    if options.only:
        assert set(result.labels.tolist()) == set(options.only)
    again = TransferSet.load(folder, check_hashes=True)
    assert torch.equal(again.images, result.images)
    assert not list(folder.glob(".collect.state"))


def test_balance_is_exact_where_nothing_is_short(walked):
    result, _, options, _, _ = walked
    if not options.balanced or result.manifest["short"]:
        return
    counts = result.counts()
    assert sum(counts) == options.images
    assert max(counts) - min(counts) <= 1
    shards = result.manifest["shards"]
    assert len(shards) == -(-options.images // options.shard_images)
    assert all(max(shard["counts"]) - min(shard["counts"]) <= 1 for shard in shards)
    assert len({shard["count"] for shard in shards}) <= 2


def test_the_cases_hold_what_they_are_there_for(linear, pictures):
    """A case that never comes short, or never leaves anything out, would show nothing."""
    result = {
        name: naive_walk(
            linear, [pictures if s == "PICTURES" else s for s in c[0]], replace(PLAIN, **c[1]), 2
        )[1]
        for name, c in CASES.items()
    }
    assert result["too few"]["short"].keys() == {"3"}
    assert not result["balanced"]["short"]
    first, second = result["two sources"]["taken"].values()
    assert first[:3] == [10, 10, 10]
    assert 0 < first[3] < 10
    assert second == [0, 0, 0, 10 - first[3]]
    assert sum(result["confidence"]["accepted"]) < 0.9 * result["confidence"]["drawn"]
    assert sum(result["unbalanced margin"]["accepted"]) > 0 < result["unbalanced margin"]["missing"]
    assert result["only"]["short"].keys() == {"0", "2"}
    assert len(result["pictures"]["taken"]) == 2


def test_a_source_that_suffices_leaves_the_next_alone(linear, tmp_path, monkeypatch):
    asked = []
    block = DrawnSource.block

    def watched(self, number):
        asked.append(self.address)
        return block(self, number)

    monkeypatch.setattr(DrawnSource, "block", watched)
    result = make(linear, ("noise", "shaders"), PLAIN, tmp_path / "set").manifest["collection"]
    assert set(asked) == {"noise"}
    assert list(result["taken"]) == ["noise"]
    assert not result["short"]


def test_the_same_seed_gives_the_same_bytes(linear, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        make(linear, ("noise",), PLAIN, tmp_path / name, seed=seed)
    assert (
        shard_bytes(tmp_path / "one")
        == shard_bytes(tmp_path / "two")
        != shard_bytes(tmp_path / "other")
    )


def test_a_finished_set_is_not_made_again(linear, tmp_path, monkeypatch):
    made = make(linear, ("noise",), PLAIN, tmp_path / "set")
    monkeypatch.setattr("inversion.sources.collect._walk", None)
    again = make(linear, ("noise",), PLAIN, tmp_path / "set")
    assert torch.equal(again.images, made.images)
    assert again.manifest == made.manifest


def test_a_lost_shard_is_made_again(linear, tmp_path):
    make(linear, ("noise",), PLAIN, tmp_path)
    before = shard_bytes(tmp_path)
    next(tmp_path.glob("shard-*")).unlink()
    make(linear, ("noise",), PLAIN, tmp_path)
    assert shard_bytes(tmp_path) == before


def test_a_network_of_ones_own_is_given_back_as_it_was(tmp_path):
    mine = linear_teacher().train()
    make(mine, ("noise",), PLAIN, tmp_path)
    assert mine.training
    assert mine.network.training
    assert all(p.requires_grad for p in mine.parameters())


def test_figures_are_exposed_where_the_teacher_tells_more_of_them(tmp_path, teacher):
    plain = replace(PLAIN, expose=None)
    even = make(linear_teacher(), ("noise",), plain, tmp_path / "even").manifest["collection"]
    assert even["exposed"] == {"noise": 0.0}
    result = {}
    for share in (0.0, 0.5, 1.0, None):
        options = CollectOptions(images=3000, draws=2048 / 3000, short=(), expose=share)
        result[share] = make(teacher, ("noise",), options, tmp_path / str(share)).manifest[
            "collection"
        ]
    # To the bundled teacher all noise is an eight; in figures on black it sees other digits as
    # well.
    best = max((0.0, 0.5, 1.0), key=lambda share: result[share]["raw_coverage"])
    assert result[0.0]["raw_coverage"] < 0.01
    assert best > 0
    assert result[None]["exposed"] == {"noise": best}
    assert result[None]["raw_counts"] == result[best]["raw_counts"]


def test_what_somebody_chose_is_never_exposed_unasked(tmp_path, teacher):
    noise = np.random.default_rng(0).integers(0, 256, (600, 28, 28), np.uint8)
    for name, count in (("few", 300), ("many", 600)):
        np.savez(tmp_path / f"{name}.npz", images=noise[:count])
    options = CollectOptions(images=20, draws=30, short=(), only=(8,))
    shown = {}
    for name in ("few", "many"):
        made = make(teacher, (str(tmp_path / f"{name}.npz"),), options, tmp_path / name)
        [shown[name]] = made.manifest["collection"]["exposed"].values()
    [shown["set"]] = (
        make(teacher, (str(tmp_path / "many"),), options, tmp_path / "again")
        .manifest["collection"]["exposed"]
        .values()
    )
    assert shown["few"] == shown["set"] == 0 < shown["many"]


def test_folders_of_any_depth_are_a_source(tmp_path):

    for number, place in enumerate((".", "a", "a/b", ".hidden", "a/.c")):
        (tmp_path / "pictures" / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 7 + number), 40 * number, np.uint8)).save(
            tmp_path / "pictures" / place / f"{number}.png"
        )
    block = open_source(str(tmp_path / "pictures"), 1, 8).block(0)
    assert sorted(block[:, 0, 0, 0].tolist()) == [0, 40, 80]


def test_options_reach_the_manifest(walked):
    result, _, options, _, _ = walked
    assert result.manifest["config"] == json.loads(json.dumps(dataclasses.asdict(options)))
    assert result.manifest["seed"] == 2
