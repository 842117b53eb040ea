"""Exposure: figures on black, made of any picture."""

import math

import pytest
import torch
from drawing import random

from inversion.sources.exposure import expose
from inversion.sources.stream import BLOCK, open_source


@pytest.mark.parametrize("channels", [1, 3])
def test_exposure_makes_the_darker_part_black_and_the_brightest_white(channels):
    images = open_source("noise", channels, 16).block(0)
    assert torch.equal(expose(images, random(0), 0.0), images)
    figures = expose(images, random(0), 1.0)
    assert figures.dtype == torch.uint8
    assert figures.shape == images.shape
    assert (figures.flatten(1).amin(1) == 0).all()
    assert (
        figures.flatten(1).amax(1) == 255
    ).double().mean() > 0.98  # but where less than a twentieth of the range is left
    black = (figures == 0).all(1).double().mean((1, 2))
    if channels == 1:
        assert 0.4 < black.mean() < 0.75
        assert black.min() < 0.1
        assert black.max() > 0.85
        assert black.max() < 0.99
    else:
        assert black.mean() > 0.15
    assert torch.equal(expose(images, random(0), 1.0), figures)
    assert not torch.equal(expose(images, random(1), 1.0), figures)


def test_exposure_takes_about_the_share_that_was_asked_and_leaves_the_others_alone():
    images = open_source("noise", 1, 8).block(0)
    changed = (expose(images, random(2), 0.3) != images).flatten(1).any(1)
    assert abs(int(changed.sum()) - 0.3 * BLOCK) < 3 * math.sqrt(BLOCK * 0.3 * 0.7)
    source = open_source("noise", 1, 8)
    half = type(source)(**{**vars(source), "exposed": 0.5}).block(0)
    assert abs(int((half != images).flatten(1).any(1).sum()) - 256) < 3 * math.sqrt(BLOCK / 4)


def test_every_second_exposed_picture_has_a_frame_with_black_around_it():
    flat = torch.full((BLOCK, 1, 24, 24), 200, dtype=torch.uint8)
    figures = expose(flat, random(3), 1.0)[
        :, 0
    ]  # without a frame there is nothing to tell apart, and all becomes black
    framed = (figures.flatten(1) > 0).any(1)
    assert abs(int(framed.sum()) - 256) < 3 * math.sqrt(BLOCK / 4)
    corners = figures[framed][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.double().mean() < 40 < 100 < figures[framed].flatten(1).amax(1).double().mean()
