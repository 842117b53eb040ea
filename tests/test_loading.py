"""A set as torch's own loaders take it."""

from dataclasses import replace

import pytest
import torch
from test_exports import make
from torch.utils.data import DataLoader, Dataset, random_split

from synthesis_kernels.errors import EchosetError


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_images_labels_answers_and_places(workers):
    data = make()
    assert isinstance(data, Dataset)
    seen = []
    for batch in DataLoader(data, batch_size=7, shuffle=True, num_workers=workers):
        assert torch.equal(batch.image * 255, data.images[batch.index].float())
        assert torch.equal(batch.label, data.labels[batch.index])
        assert torch.equal(batch.logits, data.logits[batch.index].float())
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(40))
    image, label, logits, index = data[-1]
    assert index == 39 and image.dtype == logits.dtype == torch.float32 and label == data.labels[39]
    assert len(random_split(data, [30, 10])[0]) == 30
    assert data in [make(), data]  # by identity: sets are not compared by their tensors


def test_however_little_is_calibrated_with_every_class_counts_alike():
    data = make(48)
    data = replace(data, labels=data.labels.sort().values)
    loader = data.calibration_loader(30, 7)
    images = torch.cat([images for images, _ in loader])
    labels = torch.cat([labels for _, labels in loader])
    assert images.shape == (30, 3, 8, 8) and images.dtype == torch.float32 and images.max() <= 1
    for first in range(1, 31):
        counts = labels[:first].bincount(minlength=12)
        assert counts.max() - counts.min() <= 1
    places = [int((data.images.float() / 255 == one).flatten(1).all(1).nonzero()) for one in images]
    assert len(set(places)) == 30 and torch.equal(data.labels[places], labels)
    again = torch.cat([images for images, _ in data.calibration_loader(30, 5)])
    assert torch.equal(again, images)
    other = torch.cat([images for images, _ in data.calibration_loader(30, 5, seed=1)])
    assert not torch.equal(other, images)


def test_a_class_that_runs_out_leaves_its_places_to_others():
    data = replace(make(20, 2), labels=torch.tensor([0] * 17 + [1] * 3))
    labels = torch.cat([labels for _, labels in data.calibration_loader(20)])
    assert labels.tolist() == [0, 1] * 3 + [0] * 14


def test_more_images_than_there_are_are_refused():
    for images in (0, 41):
        with pytest.raises(EchosetError, match=r"images must lie in \[1, 40\]"):
            make().calibration_loader(images)
    with pytest.raises(EchosetError, match="batch must be at least 1"):
        make().calibration_loader(4, 0)
