"""Classes that are short, and what is made for them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from collecting import (
    PLAIN,
    SCARCE,
    answers_of,
    linear_teacher,
    make,
    save_pictures,
    shard_bytes,
)

from distill import Classifier
from distill.options import ViewOptions
from inversion.filling import _evenly, _ways_of
from inversion.options import BoundaryOptions, CollectOptions
from inversion.sources.boundary import attack_boundaries
from inversion.sources.collection import MADE
from inversion.sources.making import augmented
from inversion.sources.random import Random
from inversion.sources.stock import Stock
from inversion.sources.stream import BLOCK, open_source
from synthesis_kernels.errors import EchosetError


@pytest.fixture(scope="module")
def linear():
    return linear_teacher()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("pictures") / "some.npz")


def made_images(result):
    return result.round == MADE


def test_drawing_again_goes_on_where_the_stream_was(linear, tmp_path):
    again = make(linear, ("noise",), replace(SCARCE, short=("draw",)), tmp_path / "again")
    longer = make(linear, ("noise",), replace(SCARCE, draws=55.0), tmp_path / "longer")
    assert torch.equal(again.images, longer.images)
    assert not again.manifest["short"]
    said = again.manifest["collection"]
    other = longer.manifest["collection"]
    assert all(
        said[name] == other[name] for name in ("raw_counts", "accepted", "needed", "missing")
    )
    assert list(said["taken"]) == ["noise", "noise again"]
    assert said["taken"]["noise again"][:3] == [
        0,
        0,
        0,
    ]


def test_drawing_again_from_a_folder_ends_with_the_folder(linear, pictures, tmp_path):
    result = make(linear, (pictures,), replace(SCARCE, short=("draw",)), tmp_path / "set").manifest[
        "collection"
    ]
    assert result["drawn"] <= 700
    rare = make(
        linear_teacher(-1e3), (pictures,), replace(SCARCE, short=("draw",)), tmp_path / "rare"
    ).manifest["collection"]
    assert rare["drawn"] == 700
    assert rare["short"] == {"3": 15}


@pytest.mark.parametrize("way", ["augment", "mixup", "push"])
def test_short_classes_are_filled_with_images_made_of_others(linear, tmp_path, way):
    views = ViewOptions(
        rotate=0, scale=0, shift=0, cutout=0.25
    )  # noise that is turned is another noise
    bare = make(linear, ("noise",), SCARCE, tmp_path / "bare")
    result = make(linear, ("noise",), replace(SCARCE, short=(way,), views=views), tmp_path / "set")
    assert bare.counts()[3] < 15
    assert result.counts() == [15] * 4
    assert not result.manifest["short"]
    said = result.manifest["collection"]
    mine = made_images(result)
    assert said["taken"][way] == [0, 0, 0, 15 - bare.counts()[3]]
    assert int(mine.sum()) == sum(said["taken"][way])
    assert said["raw_counts"] == bare.manifest["collection"]["raw_counts"]
    assert said["needed"][3] is None
    assert (result.labels[mine] == 3).all()
    assert torch.equal(result.images[~mine], bare.images)
    assert answers_of(linear, result.images).argmax(1).tolist() == result.labels.tolist()
    assert len(result.images[mine].flatten(1).unique(dim=0)) == mine.sum()
    if way == "mixup":  # each is a blend of at least half an image of the class
        parents = bare.images[bare.labels == 3].double().flatten(1)
        blends = result.images[mine].double().flatten(1)
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
    assert len(made) == BLOCK
    assert (made == 255).all()


def test_ways_are_tried_in_the_order_given_and_windows_hold_for_what_is_made(linear, tmp_path):
    # No image of the last class: nothing to augment, and pushed ones lie on the boundary, where
    # confidence is low.
    options = replace(SCARCE, short=("augment", "push", "mixup"))
    result = make(linear_teacher(-7), ("noise",), options, tmp_path / "set").manifest["collection"]
    assert list(result["taken"]) == ["noise", "push"]
    assert result["taken"]["push"] == [0, 0, 0, 15]
    sure = make(
        linear_teacher(-7), ("noise",), replace(options, confidence=(0.99, 1.0)), tmp_path / "sure"
    )
    assert sure.manifest["short"]["3"] == 15
    assert (sure.logits.float().softmax(1).amax(1) > 0.985).all()


def test_what_no_way_can_fill_is_said(tmp_path):
    options = replace(
        SCARCE, short=("draw", "augment", "mixup", "push"), boundary=BoundaryOptions(steps=2)
    )
    result = make(linear_teacher(-1e3), ("noise",), options, tmp_path / "set")
    assert result.manifest["short"] == {"3": 15}
    assert result.manifest["collection"]["missing"] == 15
    assert len(result) == 45


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
    result = make(teacher, ("noise",), options, tmp_path / "set").manifest["collection"]
    assert result["missing"] == 0
    assert result["taken"]["push"][3] == 15


def test_pushing_from_few_pictures_makes_no_copies(tmp_path):
    """Twenty pictures, each over three boundaries, both sides kept: 120 images at most, if every
    pass took the same walks.
    """
    np.savez(tmp_path / "few.npz", images=open_source("noise", 1, 12).block(0)[:20, 0].numpy())
    result = make(
        linear_teacher(),
        (str(tmp_path / "few.npz"),),
        replace(PLAIN, images=400, short=("push",)),
        tmp_path / "set",
    )
    assert len(result) == 400
    assert len(result.images.flatten(1).unique(dim=0)) == 400


def test_a_teacher_of_other_classes_is_refused_and_the_folder_left_free(linear, tmp_path):
    wrong = Classifier(linear.network, replace(linear.spec, classes=5))
    with pytest.raises(
        EchosetError, match=r"Set --teacher\.channels, --teacher\.size and --teacher\.classes"
    ):
        make(wrong, ("noise",), PLAIN, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_only_is_about_what_a_source_gives(linear, tmp_path):
    result = make(
        linear, ("shaders",), replace(PLAIN, only=(1, 3), short=("push",)), tmp_path / "set", seed=2
    )
    said = result.manifest["collection"]
    assert result.counts() == [10] * 4
    assert said["taken"] == {
        "shaders": [0, 10, 0, 10],
        "push": [10, 0, 10, 0],
    }


def test_an_unbalanced_set_has_the_streams_own_images_only(linear, tmp_path):
    options = replace(CollectOptions(), images=600, draws=0.5, balanced=False, expose=0.0)
    result = make(linear, ("noise",), options, tmp_path / "set")
    said = result.manifest["collection"]
    assert list(said["taken"]) == ["noise"]
    assert said["missing"] == 600 - len(result) == 88
    assert not made_images(result).any()
    assert said["short"] == {}
    make(linear, ("noise",), replace(options, short=()), tmp_path / "none")  # may be said, too
    assert shard_bytes(tmp_path / "none") == shard_bytes(tmp_path / "set")


def test_of_many_images_made_each_class_keeps_the_first_and_the_ways_are_counted():
    found = SimpleNamespace(
        round=torch.tensor([0, -1, -1, -1, 0, -1, 0, -1, -1]),
        groups=torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2]),
        classes=3,
    )
    assert _evenly(found, 9).tolist() == [1, 2, 3, 5, 7, 8]
    assert _evenly(found, 4).tolist() == [1, 2, 5, 7]
    assert _evenly(found, 2).tolist() == [1, 5] and _evenly(found, 0).tolist() == []
    taken = {"set": [1, 1, 1], "augment": [1, 0, 2], "mixup": [2, 1, 0], "draw": [0, 0, 0]}
    assert _ways_of(taken, "set", [2, 1, 1]) == {"augment": [1, 0, 1], "mixup": [1, 1, 0]}
