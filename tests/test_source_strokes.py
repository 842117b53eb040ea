"""Strokes: lines on a ground, the same at any size."""

import pytest
import torch
from drawing import floats

from inversion.sources.stream import open_source
from synthesis_kernels.errors import EchosetError


@pytest.mark.parametrize("size", [27, 28, 33])
def test_strokes_are_lines_on_a_ground(size):
    """Most of an image is one plain colour, and every image has a line on it."""
    images = floats("strokes", 1, size)
    ground = images.flatten(1).mode(1).values[:, None]
    share = ((images.flatten(1) - ground).abs() < 1e-6).double().mean(1)
    assert share.median() > 0.5
    assert share.max() < 1


@pytest.mark.parametrize("size", [27, 33])
def test_strokes_are_the_same_picture_at_any_size(size):
    """A picture drawn three times as large, and averaged down, is the picture drawn small."""
    small = floats("strokes", 3, size)
    large = torch.nn.functional.avg_pool2d(floats("strokes", 3, 3 * size), 3)
    assert (small - large).abs().mean() < 0.01
    shifted = (small - large.roll(1, -1)).abs().mean()
    assert shifted > 3 * (small - large).abs().mean()


def test_strokes_are_no_thinner_than_their_thinnest():
    with pytest.raises(
        EchosetError, match=r"thinnest must not be above thickest, got 0\.2 and 0\.1"
    ):
        open_source("strokes:thinnest=0.2,thickest=0.1", 1, 8)
    with pytest.raises(EchosetError, match=r"thinnest must not be above thickest, got 0\.02 and"):
        open_source("strokes:thickest=0.01", 1, 8)
    assert open_source("strokes:thinnest=0.1,thickest=0.1", 1, 8).block(0).any()
