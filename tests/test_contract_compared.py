"""What two networks' contracts have in common, and what a set says of itself."""

from dataclasses import replace

import pytest
import torch
from hues import hues_teacher, patches, write_set
from torch import nn

from distill import Classifier, ModelSpec, TransferSet, export, merge, subsample
from distill.models.contract import differing
from distill.sets.answering import made_by
from distill.taps import find_stages
from synthesis_kernels.errors import EchosetError


def test_one_mean_is_one_for_each_channel(tmp_path):
    teacher = hues_teacher()
    short = Classifier(teacher.network, replace(teacher.spec, mean=(0.0,), std=(1.0,)))
    keys = ("mean", "std", "channels", "size")
    assert differing(teacher.contract, short.contract, keys) == []
    other = Classifier(teacher.network, replace(teacher.spec, mean=(0.5,)))
    assert differing(teacher.contract, other.contract, keys) == ["mean"]
    sets = []
    for name, made in (("long", teacher), ("short", short.eval())):
        sets.append(TransferSet.load(write_set(tmp_path / name, made, patches())))
    assert len(merge(sets)) == 2 * len(sets[0])
    assert made_by(sets[0], short) and made_by(sets[1], teacher)
    assert not made_by(sets[0], other)


def test_a_transposed_convolution_that_answers_is_no_feature():
    layers = [
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, 2),
    ]
    spec = ModelSpec("deconvolving", channels=3, size=(16, 24), classes=4, task="segmentation")
    network = Classifier(nn.Sequential(*layers), spec).eval()
    assert network(torch.rand(2, 3, 16, 24)).shape == (2, 4, 16, 24)
    assert 4 not in find_stages(network).channels


def test_a_card_tells_what_was_made_for_short_classes(tmp_path):
    filled = {"augment": [0, 0, 3, 0], "mixup": [0, 0, 0, 0]}
    more = {"short": {"2": 2}, "filled": filled}
    data = TransferSet.load(write_set(tmp_path / "set", hues_teacher(), patches(), **more))
    card = (export(data, tmp_path / "out") / "README.md").read_text()
    assert "short classes, by `augment`: 3." in card and "`mixup`" not in card
    assert "Less than was asked for, in images: 2 of class 2 (water)." in card


def test_a_drawn_set_of_maps_lacks_what_its_pixels_lack(tmp_path):
    data = TransferSet.load(write_set(tmp_path / "set", hues_teacher(), patches()))
    part = subsample(data, 10)
    shares = [count * 10 / part.labels.numel() for count in part.counts()]  # in images
    lacking = [str(label) for label, quota in enumerate((3, 3, 2, 2)) if shares[label] < quota / 2]
    assert list(part.manifest["short"]) == lacking


def test_a_form_of_export_that_is_none_is_refused(tmp_path):
    data = TransferSet.load(write_set(tmp_path / "set", hues_teacher(), patches()))
    with pytest.raises(EchosetError, match="got 'foldr'; did you mean folder"):
        export(data, tmp_path / "out", "foldr")
