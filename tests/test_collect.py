import dataclasses
import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from distill import Classifier, ModelSpec, TransferSet, build_classifier, distill
from distill.evaluation import predict
from distill.loop import Interrupted
from distill.options import DistillOptions, ViewOptions
from distill.runtime import Runtime
from distill.tasks import TASKS, find_task
from inversion import score
from inversion.cli.main import main, parse
from inversion.cli.verbs import verify
from inversion.options import BoundaryOptions, CollectOptions
from inversion.pages.report import write_report
from inversion.sources.boundary import attack_boundaries
from inversion.sources.collection import MADE, Collection
from inversion.sources.making import augmented
from inversion.sources.random import Random
from inversion.sources.stock import Stock
from inversion.sources.stream import BLOCK, DrawnSource, open_source
from synthesis_kernels.errors import EchosetError

collecting = importlib.import_module(
    "inversion.sources.collect"
)  # the package gives the function of that name
CPU = torch.device("cpu")


# The stock


def naive_stock(quotas, balanced, batches):
    """Slots filled one image after another: for each class (or the one group of all) the numbers of
    the images it took.
    """
    room = list(quotas) if balanced else [sum(quotas)]
    held, taken, number = [[] for _ in room], [], 0
    for batch in batches:
        counts = [0] * len(quotas)
        for label, allowed in batch:
            group = label if balanced else 0
            if allowed and len(held[group]) < room[group]:
                held[group].append((number, label))
                counts[label] += 1
            number += 1
        taken.append(counts)
    return held, taken


def offer_all(stock, batches):
    number, taken = 0, []
    for turn, batch in enumerate(batches):
        labels = torch.tensor([label for label, _ in batch], dtype=torch.long)
        allowed = torch.tensor([allowed for _, allowed in batch], dtype=torch.bool)
        images = (
            (number + torch.arange(len(batch)))
            .to(torch.uint8)
            .view(-1, 1, 1, 1)
            .expand(-1, 1, 2, 2)
        )
        logits = torch.eye(stock.classes)[labels] * 5 + number
        taken.append(stock.offer(images, logits, allowed, turn).tolist())
        number += len(batch)
    return taken


some_batches = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=15), max_size=6
)


@given(st.lists(st.integers(0, 4), min_size=4, max_size=4), st.booleans(), some_batches)
@settings(max_examples=120)
def test_the_first_images_of_each_class_are_kept_in_their_order(quotas, balanced, batches):
    stock = Stock(quotas, (1, 2, 2), balanced, CPU)
    held, taken = naive_stock(quotas, balanced, batches)
    assert offer_all(stock, batches) == taken
    assert stock.held.tolist() == [len(group) for group in held]
    room = quotas if balanced else [sum(quotas)]
    assert stock.full == all(len(group) == most for group, most in zip(held, room, strict=True))
    in_turn = [
        group[place] for place in range(max(map(len, held))) for group in held if place < len(group)
    ]
    kept = stock.kept()
    assert stock.images[kept, 0, 0, 0].tolist() == [number for number, _ in in_turn]
    assert stock.logits[kept].argmax(1).tolist() == [label for _, label in in_turn]
    rounds = [turn for turn, batch in enumerate(batches) for _ in batch]
    assert stock.round[kept].tolist() == [rounds[number] for number, _ in in_turn]
    if balanced:
        assert stock.missing().tolist() == [
            most - len(group) for group, most in zip(held, quotas, strict=True)
        ]
    copy = Stock(quotas, (1, 2, 2), balanced, CPU)
    copy.load_state_dict({name: value.clone() for name, value in stock.state_dict().items()})
    for one in (stock, copy):
        offer_all(one, batches)
    assert all(
        torch.equal(value, copy.state_dict()[name]) for name, value in stock.state_dict().items()
    )


def test_any_part_of_a_full_stock_is_balanced():
    stock = Stock([3, 3, 2, 2], (1, 2, 2), True, CPU)
    offer_all(stock, [[(label, True) for label in (0, 0, 0, 3, 3, 2, 1, 2, 1, 1)]])
    labels = stock.logits[stock.kept()].argmax(1)
    for end in range(1, 11):
        counts = torch.bincount(labels[:end], minlength=4)
        assert counts.max() - counts.min() <= 1


def test_what_is_turned_away_leaves_no_trace():
    stock = Stock([1, 1], (1, 2, 2), True, CPU)
    offer_all(stock, [[(0, True), (0, True), (1, False)]])
    assert (
        not stock.images[-1].any() and not stock.logits[-1].any() and stock.kept().tolist() == [0]
    )


# Collecting, with a linear teacher whose last class is rare


def linear_teacher(last=-3.0):
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(144, 4)
    layer.weight.data = 0.12 * torch.randn(4, 144, generator=generator)
    layer.bias.data = torch.tensor([0.0, 0.3, -0.3, last])
    return Classifier(
        nn.Sequential(nn.Flatten(), layer),
        ModelSpec("mine", channels=1, size=12, classes=4, mean=(0.5,), std=(0.25,)),
    )


@pytest.fixture(scope="module")
def linear():
    return linear_teacher()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """700 coloured pictures of another size."""
    path = tmp_path_factory.mktemp("pictures") / "some.npz"
    soft = open_source("smooth", 3, 10, seed=9)
    images = torch.cat([soft.block(0), soft.block(1)])[:700].permute(0, 2, 3, 1)
    np.savez(path, images=images.numpy())
    return str(path)


PLAIN = CollectOptions(images=40, draws=60.0, short=(), expose=0.0)


def make(teacher, sources, options, out, **more):
    return collecting.collect(
        teacher, sources, options, out, runtime=Runtime(device="cpu", quiet=True, **more)
    )


def shard_bytes(folder):
    return [path.read_bytes() for path in sorted(folder.glob("shard-*.safetensors"))]


def answers_of(teacher, images):
    """The linear teacher's logits by numpy, in double precision."""
    layer = teacher.network[1]
    inputs = (images.numpy().reshape(len(images), -1) / 255 - 0.5) / 0.25
    return inputs @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


def naive_walk(teacher, addresses, options, seed=0):
    """The whole procedure, one image after another."""
    quotas = [len(range(label, options.images, 4)) for label in range(4)]
    most = math.ceil(options.draws * options.images / BLOCK)
    kept, raw, accepted, needed, taken = [[] for _ in quotas], [0] * 4, [0] * 4, [None] * 4, {}

    def enough():
        if not options.balanced:
            return sum(map(len, kept)) == options.images
        wanted = options.only or range(4)
        return all(len(kept[label]) == quotas[label] for label in wanted)

    order = []
    for address in addresses:
        source = replace(open_source(address, 1, 12, seed), exposed=options.expose)
        for number in range(min(most, source.blocks or most)):
            if enough():
                break
            images = source.block(number)
            for image, logits in zip(images, answers_of(teacher, images), strict=True):
                odds = np.exp(logits - logits.max())
                first, second = sorted(odds / odds.sum())[:-3:-1]
                label = int(logits.argmax())
                raw[label] += 1
                if not (options.confidence[0] <= first <= options.confidence[1]):
                    continue
                if not (options.margin[0] <= first - second <= options.margin[1]):
                    continue
                if options.only and label not in options.only:
                    continue
                accepted[label] += 1
                if (
                    len(kept[label]) < quotas[label]
                    if options.balanced
                    else len(order) < options.images
                ):
                    kept[label].append(image)
                    order.append(image)
                    taken.setdefault(address, [0] * 4)[label] += 1
            if options.balanced:
                needed = [
                    sum(raw) if n is None and len(kept[c]) == quotas[c] else n
                    for c, n in enumerate(needed)
                ]
    if options.balanced:
        order = [
            kept[c][place] for place in range(max(quotas)) for c in range(4) if place < len(kept[c])
        ]
    found = {
        "drawn": sum(raw),
        "raw_counts": raw,
        "accepted": accepted,
        "needed": needed,
        "taken": taken,
    }
    short = (
        {str(c): q - len(kept[c]) for c, q in enumerate(quotas) if len(kept[c]) < q}
        if options.balanced
        else {}
    )
    return torch.stack(order), found | {"short": short, "missing": options.images - len(order)}


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
    options, folder = replace(PLAIN, **change), tmp_path_factory.mktemp("walked") / "set"
    return (
        make(linear, sources, options, folder, seed=2),
        folder,
        options,
        naive_walk(linear, sources, options, 2),
        sources,
    )


def test_a_collection_is_what_a_walk_by_hand_comes_to(walked):
    found, _, _, (images, expected), sources = walked
    assert torch.equal(found.images, images)
    said = found.manifest["collection"]
    assert {name: said[name] for name in expected} == expected
    assert said["sources"] == list(sources) and found.manifest["short"] == expected["short"]
    share = np.array(said["raw_counts"]) / said["drawn"]
    assert said["raw_coverage"] == pytest.approx(
        -(share * np.log(share + 1e-300)).sum() / math.log(4), abs=1e-4
    )


def test_labels_and_logits_are_the_teachers_own(walked, linear):
    found, folder, options, _, _ = walked
    answers = answers_of(linear, found.images)
    assert answers.argmax(1).tolist() == found.labels.tolist()
    np.testing.assert_allclose(found.logits.float().numpy(), answers, rtol=2e-3, atol=2e-3)
    odds = np.exp(answers - answers.max(1, keepdims=True))
    first, second = np.sort(odds / odds.sum(1, keepdims=True), 1)[:, :-3:-1].T
    for value, (low, high) in ((first, options.confidence), (first - second, options.margin)):
        assert (value >= low - 1e-6).all() and (value <= high + 1e-6).all()
    if options.only:
        assert set(found.labels.tolist()) == set(options.only)
    again = TransferSet.load(folder, check_hashes=True)
    assert torch.equal(again.images, found.images) and not list(folder.glob(".collect.state"))


def test_balance_is_exact_where_nothing_is_short(walked):
    found, _, options, _, _ = walked
    if not options.balanced or found.manifest["short"]:
        return
    counts = found.counts()
    assert sum(counts) == options.images and max(counts) - min(counts) <= 1
    shards = found.manifest["shards"]
    assert len(shards) == -(-options.images // options.shard_images)
    assert all(max(shard["counts"]) - min(shard["counts"]) <= 1 for shard in shards)
    assert len({shard["count"] for shard in shards}) <= 2


def test_the_cases_hold_what_they_are_there_for(linear, pictures):
    """A case that never comes short, or never leaves anything out, would show nothing."""
    found = {
        name: naive_walk(
            linear, [pictures if s == "PICTURES" else s for s in c[0]], replace(PLAIN, **c[1]), 2
        )[1]
        for name, c in CASES.items()
    }
    assert found["too few"]["short"].keys() == {"3"} and not found["balanced"]["short"]
    first, second = found["two sources"]["taken"].values()
    assert first[:3] == [10, 10, 10] and 0 < first[3] < 10 and second == [0, 0, 0, 10 - first[3]]
    assert sum(found["confidence"]["accepted"]) < 0.9 * found["confidence"]["drawn"]
    assert sum(found["unbalanced margin"]["accepted"]) > 0 < found["unbalanced margin"]["missing"]
    assert found["only"]["short"].keys() == {"0", "2"} and len(found["pictures"]["taken"]) == 2


def test_a_source_that_suffices_leaves_the_next_alone(linear, tmp_path, monkeypatch):
    asked = []
    block = DrawnSource.block

    def watched(self, number):
        asked.append(self.address)
        return block(self, number)

    monkeypatch.setattr(DrawnSource, "block", watched)
    found = make(linear, ("noise", "shaders"), PLAIN, tmp_path / "set").manifest["collection"]
    assert set(asked) == {"noise"} and list(found["taken"]) == ["noise"] and not found["short"]


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
    monkeypatch.setattr(collecting, "_walk", None)
    again = make(linear, ("noise",), PLAIN, tmp_path / "set")
    assert torch.equal(again.images, made.images) and again.manifest == made.manifest


def test_a_lost_shard_is_made_again(linear, tmp_path):
    make(linear, ("noise",), PLAIN, tmp_path)
    before = shard_bytes(tmp_path)
    next(tmp_path.glob("shard-*")).unlink()
    make(linear, ("noise",), PLAIN, tmp_path)
    assert shard_bytes(tmp_path) == before


def test_a_network_of_ones_own_is_given_back_as_it_was(tmp_path):
    mine = linear_teacher().train()
    make(mine, ("noise",), PLAIN, tmp_path)
    assert (
        mine.training and mine.network.training and all(p.requires_grad for p in mine.parameters())
    )


def test_figures_are_exposed_where_the_teacher_tells_more_of_them(tmp_path, teacher):
    plain = replace(PLAIN, expose=None)
    even = make(linear_teacher(), ("noise",), plain, tmp_path / "even").manifest["collection"]
    assert even["exposed"] == {"noise": 0.0}
    found = {}
    for share in (0.0, 0.5, 1.0, None):
        options = CollectOptions(images=3000, draws=2048 / 3000, short=(), expose=share)
        found[share] = make(teacher, ("noise",), options, tmp_path / str(share)).manifest[
            "collection"
        ]
    # To the bundled teacher all noise is an eight; in figures on black it sees other digits as
    # well.
    best = max((0.0, 0.5, 1.0), key=lambda share: found[share]["raw_coverage"])
    assert found[0.0]["raw_coverage"] < 0.01 and best > 0
    assert (
        found[None]["exposed"] == {"noise": best}
        and found[None]["raw_counts"] == found[best]["raw_counts"]
    )


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
    from PIL import Image

    for number, place in enumerate((".", "a", "a/b", ".hidden", "a/.c")):
        (tmp_path / "pictures" / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 7 + number), 40 * number, np.uint8)).save(
            tmp_path / "pictures" / place / f"{number}.png"
        )
    block = open_source(str(tmp_path / "pictures"), 1, 8).block(0)
    assert sorted(block[:, 0, 0, 0].tolist()) == [0, 40, 80]


# Classes that are short

SCARCE = replace(
    PLAIN, images=60, draws=5.0
)  # one block of noise has nine images of the last class


def made_images(found):
    return found.round == MADE


def test_drawing_again_goes_on_where_the_stream_was(linear, tmp_path):
    again = make(linear, ("noise",), replace(SCARCE, short=("draw",)), tmp_path / "again")
    longer = make(linear, ("noise",), replace(SCARCE, draws=55.0), tmp_path / "longer")
    assert torch.equal(again.images, longer.images) and not again.manifest["short"]
    said, other = again.manifest["collection"], longer.manifest["collection"]
    assert all(
        said[name] == other[name] for name in ("raw_counts", "accepted", "needed", "missing")
    )
    assert list(said["taken"]) == ["noise", "noise again"] and said["taken"]["noise again"][:3] == [
        0,
        0,
        0,
    ]


def test_drawing_again_from_a_folder_ends_with_the_folder(linear, pictures, tmp_path):
    found = make(linear, (pictures,), replace(SCARCE, short=("draw",)), tmp_path / "set").manifest[
        "collection"
    ]
    assert found["drawn"] <= 700
    rare = make(
        linear_teacher(-1e3), (pictures,), replace(SCARCE, short=("draw",)), tmp_path / "rare"
    ).manifest["collection"]
    assert rare["drawn"] == 700 and rare["short"] == {"3": 15}


@pytest.mark.parametrize("way", ["augment", "mixup", "push"])
def test_short_classes_are_filled_with_images_made_of_others(linear, tmp_path, way):
    views = ViewOptions(
        rotate=0, scale=0, shift=0, cutout=0.25
    )  # noise that is turned is another noise
    bare = make(linear, ("noise",), SCARCE, tmp_path / "bare")
    found = make(linear, ("noise",), replace(SCARCE, short=(way,), views=views), tmp_path / "set")
    assert bare.counts()[3] < 15 and found.counts() == [15] * 4 and not found.manifest["short"]
    said, mine = found.manifest["collection"], made_images(found)
    assert said["taken"][way] == [0, 0, 0, 15 - bare.counts()[3]] and int(mine.sum()) == sum(
        said["taken"][way]
    )
    assert (
        said["raw_counts"] == bare.manifest["collection"]["raw_counts"]
        and said["needed"][3] is None
    )
    assert (found.labels[mine] == 3).all() and torch.equal(found.images[~mine], bare.images)
    assert answers_of(linear, found.images).argmax(1).tolist() == found.labels.tolist()
    assert len(found.images[mine].flatten(1).unique(dim=0)) == mine.sum()
    if way == "mixup":  # each is a blend of at least half an image of the class
        parents = bare.images[bare.labels == 3].double().flatten(1)
        blends = found.images[mine].double().flatten(1)
        assert (
            torch.cdist(blends, parents).amin(1)
            < torch.cdist(blends, bare.images[bare.labels < 3].double().flatten(1)).amin(1)
        ).all()


def test_augmented_images_mix_with_images_alone():
    stock = Stock([40, 40], (1, 8, 8), True, torch.device("cpu"))
    white = torch.full((3, 1, 8, 8), 255, dtype=torch.uint8)
    stock.offer(white, torch.tensor([[1.0, 0.0]] * 3), torch.ones(3, dtype=torch.bool), 0)
    views = ViewOptions(rotate=0, scale=0, shift=0, cutmix=1.0)
    made = augmented(stock, views, Random("cpu", "augment"), 0, 0)
    assert len(made) == BLOCK and (made == 255).all()


def test_ways_are_tried_in_the_order_given_and_windows_hold_for_what_is_made(linear, tmp_path):
    # No image of the last class: nothing to augment, and pushed ones lie on the boundary, where
    # confidence is low.
    options = replace(SCARCE, short=("augment", "push", "mixup"))
    found = make(linear_teacher(-7), ("noise",), options, tmp_path / "set").manifest["collection"]
    assert list(found["taken"]) == ["noise", "push"] and found["taken"]["push"] == [0, 0, 0, 15]
    sure = make(
        linear_teacher(-7), ("noise",), replace(options, confidence=(0.99, 1.0)), tmp_path / "sure"
    )
    assert (
        sure.manifest["short"]["3"] == 15 and (sure.logits.float().softmax(1).amax(1) > 0.985).all()
    )


def test_what_no_way_can_fill_is_said(tmp_path):
    options = replace(
        SCARCE, short=("draw", "augment", "mixup", "push"), boundary=BoundaryOptions(steps=2)
    )
    found = make(linear_teacher(-1e3), ("noise",), options, tmp_path / "set")
    assert (
        found.manifest["short"] == {"3": 15}
        and found.manifest["collection"]["missing"] == 15
        and len(found) == 45
    )


def test_pushing_goes_on_while_it_helps_though_little_is_missing(linear, tmp_path):
    """A block of walks is as small as what is missing, so many have to be tried where few
    succeed.
    """
    options = replace(
        SCARCE, short=("push",), boundary=BoundaryOptions(steps=2, first_step=8.0, growth=1.0)
    )
    teacher = linear_teacher(-6)
    images = open_source("noise", 1, 12).block(0)
    success = (
        attack_boundaries(teacher, images, torch.full((BLOCK, 1), 3), options.boundary)
        .found.double()
        .mean()
    )
    assert 0.01 < success < 0.2
    found = make(teacher, ("noise",), options, tmp_path / "set").manifest["collection"]
    assert found["missing"] == 0 and found["taken"]["push"][3] == 15


def test_pushing_from_few_pictures_makes_no_copies(tmp_path):
    """Twenty pictures, each over three boundaries, both sides kept: 120 images at most, if every
    pass took the same walks.
    """
    np.savez(tmp_path / "few.npz", images=open_source("noise", 1, 12).block(0)[:20, 0].numpy())
    found = make(
        linear_teacher(),
        (str(tmp_path / "few.npz"),),
        replace(PLAIN, images=400, short=("push",)),
        tmp_path / "set",
    )
    assert len(found) == 400 and len(found.images.flatten(1).unique(dim=0)) == 400


def test_a_teacher_of_other_classes_is_refused_and_the_folder_left_free(linear, tmp_path):
    wrong = Classifier(linear.network, replace(linear.spec, classes=5))
    with pytest.raises(
        EchosetError, match=r"Set --teacher\.channels, --teacher\.size and --teacher\.classes"
    ):
        make(wrong, ("noise",), PLAIN, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_only_is_about_what_a_source_gives(linear, tmp_path):
    found = make(
        linear, ("shaders",), replace(PLAIN, only=(1, 3), short=("push",)), tmp_path / "set", seed=2
    )
    said = found.manifest["collection"]
    assert found.counts() == [10] * 4 and said["taken"] == {
        "shaders": [0, 10, 0, 10],
        "push": [10, 0, 10, 0],
    }


def test_an_unbalanced_set_has_the_streams_own_images_only(linear, tmp_path):
    options = replace(CollectOptions(), images=600, draws=0.5, balanced=False, expose=0.0)
    found = make(linear, ("noise",), options, tmp_path / "set")
    said = found.manifest["collection"]
    assert (
        list(said["taken"]) == ["noise"]
        and said["missing"] == 600 - len(found) == 88
        and not made_images(found).any()
    )
    assert said["short"] == {}
    make(linear, ("noise",), replace(options, short=()), tmp_path / "none")  # may be said, too
    assert shard_bytes(tmp_path / "none") == shard_bytes(tmp_path / "set")


# Stopped and taken up again

LONG = replace(
    PLAIN,
    images=240,
    draws=1.0,
    short=("draw", "augment", "mixup", "push"),
    expose=0.5,
    confidence=(0.35, 1.0),
)
MADE_ONLY = replace(LONG, images=400, short=("augment", "mixup"), confidence=(0.6, 1.0))


@pytest.mark.parametrize("last, options, ways", [(-5, LONG, 7), (-3, MADE_ONLY, 4)])
def test_a_run_stopped_after_any_block_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch, last, options, ways
):
    teacher, sources = linear_teacher(last), ("noise", "smooth")
    take, calls, stop_at = Collection.take, [], None

    def watched(self, phase, *rest):
        take(self, phase, *rest)
        calls.append(phase.name)
        if len(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Collection, "take", watched)
    whole = make(teacher, sources, options, tmp_path / "whole")
    names = calls.copy()
    assert len(dict.fromkeys(names)) == ways  # sources, both again, and ways of making
    starts = [
        number for number in range(len(names)) if number == 0 or names[number] != names[number - 1]
    ]
    for stop_at in sorted(
        {*starts[1:], *(min(start + 2, len(names)) for start in starts), len(names)}
    ):  # ends, middles
        calls.clear()
        folder = tmp_path / f"stopped{stop_at}"
        with pytest.raises(Interrupted, match="keeps it"):
            make(teacher, sources, options, folder)
        assert (folder / ".collect.state").is_file() and not (folder / "manifest.json").exists()
        assert calls == names[:stop_at]
        found = make(teacher, sources, options, folder)
        assert calls == names  # nothing was done twice, or left out
        assert (
            shard_bytes(folder) == shard_bytes(tmp_path / "whole")
            and not (folder / ".collect.state").exists()
        )
        for name, value in whole.manifest["collection"].items():
            assert name == "seconds" or found.manifest["collection"][name] == value


FLAGS = [
    "--source",
    "smooth",
    "--images=30",
    "--collection.draws=40",
    "--collection.expose=0.5",
    "--seed=1",
    "--device=cpu",
]
STOPPING = """
import os, signal, sys
from inversion.sources.collection import Collection
take, calls = Collection.take, []
def stopping(*arguments):
    take(*arguments)
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])
Collection.take = stopping
import distill.loop
distill.loop.Every.__call__ = lambda self: True  # saved after every block
from inversion.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A set of the bundled teacher, collected without a stop by the command line."""
    out = tmp_path_factory.mktemp("whole") / "set"
    command = [
        sys.executable,
        "-m",
        "inversion.cli.main",
        "collect",
        *FLAGS,
        f"--out={out}",
        "--json",
    ]
    return out, subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=ROOT, check=True
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_stopped_process_goes_on_to_the_same_bytes(whole, tmp_path, name):
    out = tmp_path / "stopped"
    arguments = ["collect", *FLAGS, f"--out={out}", "--quiet"]
    command = [sys.executable, "-c", STOPPING, name, *arguments]
    stopped = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert (out / ".collect.state").is_file() and not (out / "manifest.json").exists()
    if name == "SIGKILL":
        assert stopped.returncode == -signal.SIGKILL
    else:
        assert (
            stopped.returncode == 130
            and "run the same command again" in stopped.stderr
            and "Traceback" not in stopped.stderr
        )
    if name == "SIGKILL":
        command = [sys.executable, "-m", "inversion.cli.main", *arguments]
        subprocess.run(command, env=environment(), cwd=ROOT, check=True)
    else:
        assert main(arguments) == 0  # another process would do no more
    assert shard_bytes(out) == shard_bytes(whole[0])


# The command line


def test_the_last_line_is_the_whole_account(whole):
    out, done = whole
    document = json.loads(done.stdout.strip().splitlines()[-1])
    manifest = json.loads((out / "manifest.json").read_text())
    assert (
        document["images"] == 30
        and document["per_class"] == [3] * 10
        and document["set"] == str(out)
    )
    assert all(document[name] == value for name, value in manifest["collection"].items())
    assert "shown as figures on black: 50% of smooth" in done.stdout and "full after" in done.stdout
    assert manifest["method"] == "collect" and manifest["config"]["expose"] == 0.5


def test_verify_and_distill_take_a_collected_set(whole, teacher, capsys):
    out, _ = whole
    assert main(["verify", f"--set={out}", "--teacher=mnist", "--json", "--device=cpu"]) == 0
    verified = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (
        verified["balanced"]
        and verified["labels_differ"] == 0
        and verified["largest_logit_gap"] < 2e-3
    )
    made = TransferSet.load(out, check_hashes=True)
    assert torch.equal(predict(teacher, made.images, CPU).argmax(1), made.labels)
    student = build_classifier(ModelSpec("convnet-4"))
    options = DistillOptions(steps=3, views_per_image=2, batch=16)
    assert (
        distill(student, made, teacher, options, runtime=Runtime(device="cpu", quiet=True)).student
        is student
    )


@pytest.mark.parametrize("ahead, differ", [(1e-6, 0), (3e-4, 1)])
def test_verify_forgives_what_rounding_decides_and_no_more(
    whole, capsys, monkeypatch, ahead, differ
):
    made = TransferSet.load(whole[0])
    answers, label = made.logits.float(), int(made.labels[0])
    answers[0] = 0.0
    answers[0, label - 1] = ahead
    stored = answers.half()
    monkeypatch.setattr(TransferSet, "load", lambda *_, **__: replace(made, logits=stored))
    monkeypatch.setattr(verify, "predict", lambda *_, **__: answers)
    assert (
        main(["verify", f"--set={whole[0]}", "--teacher=mnist", "--json", "--device=cpu"]) == differ
    )
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["labels_differ"] == differ


def test_verify_takes_a_set_that_was_not_meant_to_be_balanced(linear, tmp_path, capsys):
    make(linear, ("noise",), replace(PLAIN, balanced=False), tmp_path / "twin")
    assert main(["verify", f"--set={tmp_path / 'twin'}"]) == 0
    assert "not balanced, nor meant to be" in capsys.readouterr().out
    make(linear, ("noise",), SCARCE, tmp_path / "short")
    assert (
        main(["verify", f"--set={tmp_path / 'short'}"]) == 1
        and "is not balanced" in capsys.readouterr().err
    )


def test_the_report_says_where_the_images_came_from(linear, pictures, tmp_path):
    found = make(linear, ("noise", pictures), replace(SCARCE, short=("push",)), tmp_path / "set")
    page = write_report(tmp_path / "set").read_text()
    assert (
        "images from noise, " in page
        and "chosen by one trained network" in page
        and "Where the images came from" in page
    )
    rows = re.findall(r"<tr><td>3<td>(\d+)<td>(\d+)", page)
    assert (str(found.manifest["collection"]["raw_counts"][3]),) * 2 in rows
    assert (
        "Where the time went" not in page
        and "synthetic images" not in page
        and page.count("<img") == 4
    )


def test_words_without_a_flag_are_sources(tmp_path, capsys):
    flags = [
        "--images=20",
        "--collection.draws=60",
        "--collection.expose=0.5",
        f"--out={tmp_path / 'set'}",
        "--device=cpu",
        "--json",
    ]
    assert main(["collect", "noise", "pink", f"--out={tmp_path / 'set'}", *flags]) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["sources"] == [
        "noise",
        "pink",
    ]
    assert main(["collect", "shadrs", f"--out={tmp_path / 'other'}"]) == 1
    assert "did you mean shaders?" in capsys.readouterr().err


def test_a_set_that_stays_short_is_written_and_fails(tmp_path, capsys):
    out = tmp_path / "set"
    flags = [
        "--source",
        "noise",
        "--short",
        "--images=40",
        "--collection.draws=5",
        "--collection.expose=0",
        "--json",
        "--device=cpu",
    ]
    assert main(["collect", f"--out={out}", *flags]) == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out.strip().splitlines()[-1])
    label, lacks = next(iter(document["short"].items()))
    assert (
        f"{out} is written but {document['missing']} images short: " in printed.err
        and "Traceback" not in printed.err
    )
    assert (
        f"class {label} lacks {lacks}" in printed.err
        and "further way of filling classes to --short" in printed.err
    )
    made = TransferSet.load(out, check_hashes=True)
    assert len(made) == document["images"] == 40 - document["missing"]


def parsed(*arguments):
    return parse("collect", list(arguments))


def test_lists_are_given_word_by_word():
    for arguments in (
        ["--source", "noise", "leaves:smallest=0.1,cover=0.5", "--json"],
        ["--sources=[noise,'leaves:smallest=0.1,cover=0.5']"],
    ):
        assert parsed(*arguments).sources == ("noise", "leaves:smallest=0.1,cover=0.5")
    assert parsed("--source", "noise", "pink", "--quiet").sources == ("noise", "pink")
    assert parsed("--source=leaves:cover=0.5").sources == ("leaves:cover=0.5",)
    assert parsed("noise", "pink", "--images", "9").sources == ("noise", "pink")
    assert parsed("--source", "noise", "--source", "pink").sources == ("pink",)  # the later wins
    assert parsed().sources == ("shaders",) and parsed().collection == CollectOptions()
    assert parsed("--short", "draw", "mixup", "--json").collection.short == ("draw", "mixup")
    assert parsed("--short").collection.short == parsed("--short", "--quiet").collection.short == ()
    run = parsed(
        "--images=9",
        "--teacher",
        "mnist",
        "--short=augment",
        "--collection.only=[1,3]",
        "--collection.confidence=[0.2,0.8]",
    )
    assert run.collection == CollectOptions(
        images=9, short=("augment",), only=(1, 3), confidence=(0.2, 0.8)
    )


def test_flags_win_over_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "sources: [pink]\nseed: 4\ncollection:\n  images: 7\n  short: [draw]\n"
    )
    run = parsed(f"--config={tmp_path / 'c.yaml'}", "--source", "noise", "--short")
    assert (run.sources, run.seed, run.collection.images, run.collection.short) == (
        ("noise",),
        4,
        7,
        (),
    )
    assert parsed(f"--config={tmp_path / 'c.yaml'}").collection.short == ("draw",)


def test_a_way_that_is_none_ends_with_status_two(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("--short", "draw", "dream")
    assert ended.value.code == 2 and "dream" in capsys.readouterr().err


# Refused


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": 0}, "collection.images must be at least 1, got 0"),
        ({"shard_images": 0}, "collection.shard_images must be at least 1, got 0"),
        (
            {"confidence": (0.8, 0.2)},
            "collection.confidence must be two numbers in [0, 1], the lower first, got 0.8 and 0.2",
        ),
        (
            {"margin": (0.0, 1.5)},
            "collection.margin must be two numbers in [0, 1], the lower first, got 0.0 and 1.5",
        ),
        ({"margin": (math.nan, 1.0)}, "collection.margin must be"),
        ({"draws": 0.0}, "collection.draws must be above 0 and finite, got 0.0"),
        ({"draws": math.inf}, "collection.draws must be above 0 and finite, got inf"),
        ({"expose": 1.5}, "collection.expose must lie in [0, 1], got 1.5"),
        ({"only": (1, 4)}, "collection.only names class 4; the teacher knows 0 to 3"),
        ({"only": (-1,)}, "collection.only names class -1"),
        (
            {"short": ("draw", "push", "draw")},
            "collection.short names a way twice: draw, push, draw",
        ),
        ({"balanced": False, "short": ("draw",)}, "none is where collection.balanced is false"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(linear, tmp_path, change, message):
    with pytest.raises(EchosetError, match=re.escape(message)):
        make(linear, ("noise",), replace(PLAIN, **change), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_folder_with_something_else_is_left_alone(linear, tmp_path):
    make(linear, ("noise",), PLAIN, tmp_path / "set")
    before = shard_bytes(tmp_path / "set")
    others = [
        {"options": replace(PLAIN, images=8)},
        {"seed": 1},
        {"sources": ("pink",)},
        {"teacher": linear_teacher(-1)},
    ]
    for other in others:
        arguments = {"teacher": linear, "sources": ("noise",), "options": PLAIN} | other
        with pytest.raises(
            EchosetError,
            match="made with other options, sources, seed or teacher; choose another --out",
        ):
            make(out=tmp_path / "set", **arguments)
    assert shard_bytes(tmp_path / "set") == before
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(EchosetError, match="choose another --out"):
        make(linear, ("noise",), PLAIN, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_folder_of_pictures_that_changed_is_another_source(linear, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        pixels = np.random.default_rng(number).integers(
            0, 256, (12 + number % 3, 14), dtype=np.uint8
        )
        Image.fromarray(pixels).save(folder / f"{number}.png")
    options = replace(PLAIN, images=8, short=("push",))
    found = make(linear, (str(folder),), options, tmp_path / "set")
    assert found.counts() == [2] * 4 and found.manifest["collection"]["drawn"] <= 40
    Image.fromarray(pixels[::-1].copy()).save(folder / "41.png")
    with pytest.raises(EchosetError, match="other options, sources, seed or teacher"):
        make(linear, (str(folder),), options, tmp_path / "set")


def test_no_image_is_an_error_that_says_what_was_seen_and_leaves_the_folder_free(linear, tmp_path):
    nothing = replace(PLAIN, confidence=(1.0, 1.0), draws=10.0)
    with pytest.raises(
        EchosetError,
        match=r"no image was taken of 512 drawn \(by class \[.*\]\); widen confidence, margin or only",
    ):
        make(linear, ("noise",), nothing, tmp_path / "set")
    assert (
        len(make(linear, ("noise",), PLAIN, tmp_path / "set")) == 40
    )  # other options, the same folder


def test_a_damaged_state_is_named(linear, tmp_path, monkeypatch):
    key = {}
    monkeypatch.setattr(
        collecting,
        "_walk",
        lambda *arguments: key.update(value=arguments[5]) or (_ for _ in ()).throw(Interrupted()),
    )
    with pytest.raises(Interrupted):
        make(linear, ("noise",), PLAIN, tmp_path / "set")
    monkeypatch.undo()
    (tmp_path / "set" / ".collect.state").write_bytes(b"cut short")
    with pytest.raises(EchosetError, match=r"\.collect\.state cannot be read as saved state"):
        make(linear, ("noise",), PLAIN, tmp_path / "set")
    assert key["value"].endswith(" cpu")


def test_a_teacher_of_colours_collects_from_grey_pictures(tmp_path):
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    )
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    teacher = Classifier(
        network, ModelSpec("mine", channels=3, size=17, classes=3, mean=(0.5, 0.4, 0.3), std=(0.2,))
    )
    grey = np.random.default_rng(0).integers(0, 256, (300, 9, 9), dtype=np.uint8)
    np.savez(tmp_path / "grey.npz", images=grey)
    found = make(
        teacher,
        (str(tmp_path / "grey.npz"), "shaders"),
        replace(PLAIN, images=30, short=("push",)),
        tmp_path / "set",
    )
    assert found.images.shape == (30, 3, 17, 17) and found.counts() == [10] * 3
    assert torch.equal(predict(teacher, found.images, CPU).argmax(1), found.labels)


def test_options_reach_the_manifest(walked):
    found, _, options, _, _ = walked
    assert (
        found.manifest["config"] == json.loads(json.dumps(dataclasses.asdict(options)))
        and found.manifest["seed"] == 2
    )


# A teacher that decides at several places


class Halves:
    """One decision for the left half and one for the right; an image counts for the left one."""

    label_dtype = torch.uint8

    def places(self, spec):
        return (2,)

    def group(self, labels, classes):
        return labels[:, 0].long()

    def shortfall(self, counts, quotas):
        return {}

    def summary(self, logits):
        return logits.mean(-1)


class BothHalves(nn.Module):
    def __init__(self, whole):
        super().__init__()
        self.whole = whole

    def forward(self, images):  # (B, C, H, W) -> (B, K, 2)
        left, right = images.clone(), images.clone()
        left[..., 6:] = 0
        right[..., :6] = 0
        return torch.stack([self.whole(left), self.whole(right)], -1)


@pytest.fixture
def halves(linear, monkeypatch):
    monkeypatch.setitem(TASKS, "halves", f"{__name__}:Halves")
    yield Classifier(BothHalves(linear.network), replace(linear.spec, task="halves"))
    find_task.cache_clear()


def test_a_set_of_several_decisions_an_image_is_balanced_by_what_images_count_for(halves, tmp_path):
    options = replace(PLAIN, images=24, short=("mixup",), confidence=(0.5, 1.0), draws=200.0)
    made = make(halves, ("noise",), options, tmp_path / "set")
    assert made.logits.shape == (24, 4, 2) and made.labels.shape == (24, 2)
    assert made.labels.dtype == torch.uint8
    assert made.groups.bincount(minlength=4).tolist() == [6] * 4
    assert made.manifest["collection"]["missing"] == 0
    assert sum(made.counts()) == 48
    confidence = made.logits.float().softmax(1).amax(1).mean(1)
    assert confidence.min() >= 0.5 - 1e-3
    odds = made.logits.float().softmax(1).amax(1)
    assert (odds < 0.5).any()  # one half may be unsure


def test_only_what_decides_once_an_image_is_pushed(halves, linear, tmp_path):
    with pytest.raises(
        EchosetError, match=r"push walks .* \(halves\) decides at 2 places of it; fill"
    ):
        make(halves, ("noise",), replace(PLAIN, short=("push",)), tmp_path / "set")
    assert not (tmp_path / "set").exists()
    images = open_source("noise", 1, 12).block(0)[:2]
    with pytest.raises(EchosetError, match="the boundary attack walks"):
        attack_boundaries(halves, images, torch.zeros(2, 1, dtype=torch.long))


def test_a_scorecard_compares_summaries(halves):
    images = open_source("noise", 1, 12).block(0)[:60]
    card = score(images, halves, runtime=Runtime(device="cpu", quiet=True))
    decisions = halves(images.float() / 255).mean(-1).argmax(1)
    assert torch.equal(card.decisions, decisions)
    assert sum(card.counts) == 60 and sum(card.margins) == 60
    assert card.values["boundary_distance"] > 0
