"""Fractals: known maps give known attractors."""

import numpy as np
import torch
from drawing import random

from inversion.sources import fractals
from inversion.sources.fractals import Fractals
from inversion.sources.random import Random


class KnownMaps(Random):
    """Three maps of half size about three corners, then random walks: a flat triangle of
    Sierpiński's, white on black.
    """

    def __init__(self):
        super().__init__("cpu", "known")
        count = 1
        maps = fractals.MAPS
        offsets = torch.zeros(2, count, maps)
        offsets[:, 0, :3] = torch.tensor([[0.0, 0.5, 0.25], [0.0, 0.0, 0.25]])
        half = torch.full((count, maps), 0.5)
        ones = torch.ones(count, maps)
        self.known = [
            torch.zeros(2, count, maps),
            half,
            ones,
            ones,
            offsets,
        ]  # turns, sizes, ratios, signs, offsets
        self.after = [
            torch.ones(1, 1, 1, 1),
            torch.tensor([1.0, 0.0]).view(2, 1, 1, 1, 1),
            torch.ones(1, 1, 1, 1),
        ]

    def uniform(self, *shape, low=0.0, high=1.0):
        if self.known:
            given = self.known.pop(0)
        elif shape == (1, fractals.WALKERS):
            return super().uniform(*shape, low=low, high=high)
        else:
            given = self.after.pop(0)
        assert tuple(given.shape) == shape
        return given

    def integers(self, low, high, *shape):
        assert (low, high, shape) == (2, fractals.MAPS, (1, 1))
        return torch.full(shape, 3)


def test_known_maps_give_their_known_attractor():
    size = 33
    lit = Fractals().draw(KnownMaps(), 1, 1, size, size)[0, 0] > 0
    # The same set from its own definition: all images of a corner under seven maps, one after
    # another.
    points = np.zeros((1, 2))
    for _ in range(7):
        points = np.concatenate(
            [points / 2 + corner for corner in ([0, 0], [0.5, 0], [0.25, 0.25])]
        )
    known = torch.zeros(size, size)
    points = points / points.max() + [0, 0.25]  # half as high as wide, and in the middle
    place = np.rint(points * (size - 1)).astype(int)
    known[place[:, 1], place[:, 0]] = 1
    near = torch.nn.functional.max_pool2d(known[None], 3, 1, 1)[0] > 0
    assert not (lit & ~near).any()
    assert (lit & (known > 0)).sum() > 0.85 * (known > 0).sum()
    # in the hole in the middle
    assert not near.all()
    assert not lit[14, 16]
    # it is half as high as wide, and stays so
    assert not lit[:7].any()
    assert not lit[26:].any()


def test_fractals_fill_the_canvas_along_their_longer_side_and_are_sparse():
    pictures = Fractals().draw(random("box"), 64, 3, 32, 32)
    assert pictures.isfinite().all()
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    grounds = pictures.flatten(2).mode(2).values[:, :, None, None]
    on_black = (pictures.flatten(1).amin(1) == 0).nonzero()[:, 0]
    # half of them
    assert 16 < len(on_black) < 48
    assert len(grounds) == 64
    for picture in pictures[on_black]:
        rows, columns = (picture.amax(0) > 0).nonzero().unbind(1)
        longer, shorter = sorted((rows, columns), key=lambda part: part.min())
        assert longer.min() == 0
        assert longer.max() == 31
        assert abs(shorter.min() + shorter.max() - 31) <= 1  # in the middle along the other
        colour = picture.flatten(1)[:, picture.amax(0).flatten().argmax()]
        shade = picture / colour[:, None, None].clamp_min(1e-9)
        torch.testing.assert_close(
            shade, shade[:1].expand(3, -1, -1), atol=1e-4, rtol=0
        )  # one colour, more or less bright


def test_fractals_are_of_many_kinds():
    covered = torch.cat(
        [
            (p.amax(0, keepdim=True) > 0).double().mean((1, 2))
            for p in Fractals().draw(random(1), 64, 1, 32, 32)
        ]
    )
    assert covered.min() < 0.15
    assert covered.max() > 0.4
