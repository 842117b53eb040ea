"""Views that are told as numbers, made again without this project's code."""

import pytest
import torch

from distill.data.augment import make_views
from distill.data.recorded import is_recorded, record_views
from distill.options import ViewOptions
from distill.sets.forms.train_elsewhere import make_views as views_elsewhere

OPTIONS = {
    "nothing": ViewOptions(rotate=0, scale=0, shift=0),
    "usual": ViewOptions(cutmix=0.5),
    "photographs": ViewOptions(rotate=0, scale=0, shift=0.25, flip=True, cutmix=0.7),
    "mirrored and turned": ViewOptions(rotate=90, scale=0.3, shift=0.2, flip=True, cutmix=0.3),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_make_the_very_views(name, channels):
    options = OPTIONS[name]
    random = torch.Generator().manual_seed(1)
    pool = torch.randint(256, (7, channels, 12, 12), dtype=torch.uint8, generator=random)
    index = torch.arange(7).repeat_interleave(9)
    view = torch.arange(9).repeat(7)
    assert is_recorded(options)
    turns, partners, boxes = record_views(pool, index, view, options, seed=5)
    assert turns.dtype == torch.float32 and partners.dtype == torch.int32
    lessons = {
        "images": pool,
        "turns": turns.view(7, 9, 2, 3),
        "partners": partners.view(7, 9),
        "boxes": boxes.view(7, 9, 4),
    }
    theirs = views_elsewhere(lessons, index, view)
    ours = make_views(pool, index, view, options, 5)
    # Bilinear between pixels: a place that is 1e-6 off moves a value by as little.
    assert torch.allclose(theirs, ours, atol=1e-4)
    if name == "nothing":
        assert torch.allclose(theirs, pool[index].float() / 255, atol=1e-4)


def test_what_numbers_can_not_say_is_known():
    for changes in ({"cutout": 0.2}, {"mixup": 0.5}, {"erase": 0.1}, {"operations": 2}):
        assert not is_recorded(ViewOptions(**changes))
