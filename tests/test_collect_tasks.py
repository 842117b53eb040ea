"""Collecting and scoring by a teacher that decides at several places of an image."""

from dataclasses import replace

import pytest
import torch
from collecting import (
    PLAIN,
    linear_teacher,
    make,
)
from torch import nn

from distill import Classifier
from distill.runtime import Runtime
from distill.tasks import TASKS, find_task
from distill.tasks.words import Words
from inversion import score
from inversion.sources.boundary import attack_boundaries
from inversion.sources.stream import open_source
from synthesis_kernels.errors import EchosetError


@pytest.fixture(scope="module")
def linear():
    return linear_teacher()


class Halves:
    """One decision for the left half and one for the right; an image counts for the left one."""

    exact = False
    words = Words(unit="decisions", shares=True)
    label_dtype = torch.uint8

    def places(self, spec):
        return (2,)

    def group(self, labels, classes):
        return labels[:, 0].long()

    def shortfall(self, counts, quotas, images):
        return {}

    def summary(self, logits):
        return logits.mean(-1)


class BothHalves(nn.Module):
    def __init__(self, whole):
        super().__init__()
        self.whole = whole

    def forward(self, images):  # (B, C, H, W) -> (B, K, 2)
        left = images.clone()
        right = images.clone()
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
    assert made.logits.shape == (24, 4, 2)
    assert made.labels.shape == (24, 2)
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
        make(halves, ("noise",), replace(PLAIN, short=("draw", "push")), tmp_path / "set")
    assert not (tmp_path / "set").exists()
    images = open_source("noise", 1, 12).block(0)[:2]
    with pytest.raises(EchosetError, match="the boundary attack walks"):
        attack_boundaries(halves, images, torch.zeros(2, 1, dtype=torch.long))


def test_a_scorecard_counts_decisions_and_groups_images_by_what_they_count_for(halves):
    images = open_source("noise", 1, 12).block(0)[:60]
    card = score(images, halves, runtime=Runtime(device="cpu", quiet=True))
    decisions = halves(images.float() / 255).argmax(1)
    assert torch.equal(card.decisions, decisions[:, 0])
    assert card.counts == decisions.flatten().bincount(minlength=4).tolist()
    assert sum(card.margins) == 120
    assert card.values["boundary_distance"] is None
