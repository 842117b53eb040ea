"""Collections that can't be, and folders left alone."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from collecting import (
    PLAIN,
    linear_teacher,
    make,
    shard_bytes,
)
from PIL import Image
from torch import nn

from distill import Classifier, ModelSpec
from distill.evaluation import predict
from synthesis_kernels.errors import EchosetError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def linear():
    return linear_teacher()


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
    result = make(linear, (str(folder),), options, tmp_path / "set")
    assert result.counts() == [2] * 4
    assert result.manifest["collection"]["drawn"] <= 40
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
    result = make(
        teacher,
        (str(tmp_path / "grey.npz"), "shaders"),
        replace(PLAIN, images=30, short=("push",)),
        tmp_path / "set",
    )
    assert result.images.shape == (30, 3, 17, 17)
    assert result.counts() == [10] * 3
    assert torch.equal(predict(teacher, result.images, CPU).argmax(1), result.labels)
