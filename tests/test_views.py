"""Views of images: what is moved and by how much."""

from dataclasses import replace

import pytest
import torch

from distill.data.augment import make_views
from distill.options import ViewOptions


def all_views(images, options, view=0, seed=0):
    index = torch.arange(len(images))
    return make_views(images, index, torch.full_like(index, view), options, seed)


def test_views():
    images = torch.randint(0, 256, (64, 1, 12, 12), dtype=torch.uint8)
    still = ViewOptions(rotate=0, scale=0, shift=0)
    assert torch.equal(all_views(images, still), images / 255)
    for options in (ViewOptions(flip=True), ViewOptions(rotate=0, scale=0, cutout=0.5, mixup=0.5)):
        one, two, other = (all_views(images, options, view) for view in (3, 3, 4))
        assert torch.equal(one, two) and one.shape == images.shape and not torch.equal(one, other)
        assert one.min() >= 0 and one.max() <= 1 + 1e-6
        # The same view in another batch, and in another order.
        index = torch.tensor([7, 2, 7])
        torch.testing.assert_close(
            make_views(images, index, torch.full((3,), 3), options, 0), one[index]
        )
    flipped = [
        torch.equal(m, i.flip(2))
        for m, i in zip(all_views(images, replace(still, flip=True)), images / 255, strict=True)
    ]
    assert 16 < sum(flipped) < 48


@pytest.mark.parametrize("rotate", [0.0, 1e-6])  # by whole pixels, and resampled
def test_a_shift_moves_by_the_stated_part_of_the_side_at_most(rotate):
    image = torch.zeros(200, 1, 20, 20, dtype=torch.uint8)
    image[:, :, 10, 10] = 255
    views = all_views(image, ViewOptions(rotate=rotate, scale=0, shift=0.2))
    rows, columns = (
        views.sum(d).flatten(1) @ torch.arange(20.0) / views.sum((1, 2, 3)) for d in (3, 2)
    )
    assert 3 < (rows - 10).abs().max() <= 4.01 and 3 < (columns - 10).abs().max() <= 4.01
