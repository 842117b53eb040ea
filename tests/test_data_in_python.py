"""Data sets that are objects in Python, and torchvision's."""

import numpy as np
import pytest
import torch
from PIL import Image
from writing import COLOUR, GREY, write_mnist, write_pictures

from distill import load_images
from distill.data.images import from_dataset
from synthesis_kernels.errors import EchosetError


def test_a_data_set_in_python():
    unit = torch.from_numpy(COLOUR).permute(2, 0, 1) / 255
    items = [
        (Image.fromarray(COLOUR), 4),
        (COLOUR, np.int64(0)),
        (unit, torch.tensor(7), "more"),
        [Image.fromarray(GREY), 1],
    ]
    data = from_dataset(items, "mine", 3, 6)
    expected = np.stack([COLOUR, COLOUR, COLOUR, np.stack([GREY] * 3, -1)])
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), expected)
    assert (
        data.labels.tolist() == [4, 0, 7, 1]
        and data.labels.dtype is torch.int64
        and data.name == "mine"
    )


def test_a_data_set_in_python_without_labels():
    unit = torch.from_numpy(GREY)[None] / 255
    for items in (
        [Image.fromarray(GREY), GREY, unit],
        [(GREY,), (unit,)],
        [(GREY, None), (GREY, "cat")],
    ):
        data = from_dataset((item for item in items), "mine", 1, 6)
        assert data.labels is None and len(data) == len(items)
        assert all(np.array_equal(image[0].numpy(), GREY) for image in data.images)
    with pytest.raises(EchosetError, match="mine is empty"):
        from_dataset([], "mine")


@pytest.mark.parametrize("split, count", [("test", 3), ("train", 2)])
def test_torchvision_reads_the_same_mnist(tmp_path, split, count):
    write_mnist(tmp_path / "MNIST" / "raw")
    ours, theirs = load_images(tmp_path, split), load_images(f"torchvision:MNIST:{tmp_path}", split)
    assert (
        torch.equal(ours.images, theirs.images)
        and torch.equal(ours.labels, theirs.labels)
        and len(theirs) == count
    )
    assert "torchvision:MNIST" in theirs.name
    fitted = load_images(f"torchvision:MNIST:{tmp_path}", split, channels=3, size=10)
    assert torch.equal(fitted.images, ours.fitted(3, 10).images)


def test_torchvision_reads_folders(tmp_path):
    for name, picture in zip("ab", (COLOUR, COLOUR.transpose(1, 0, 2)), strict=True):
        write_pictures(tmp_path / name, picture)
    ours, theirs = load_images(tmp_path), load_images(f"torchvision:ImageFolder:{tmp_path}")
    assert torch.equal(ours.images, theirs.images) and theirs.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "address",
    [
        "torchvision:MNIST",
        "torchvision:MNIST:",
        "torchvision::ROOT",
        "torchvision:Photographs:ROOT",
    ],
)
def test_torchvision_addresses_that_name_nothing(address):
    with pytest.raises(EchosetError, match=f"'{address}' should be torchvision:NAME:ROOT"):
        load_images(address)


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "SVHN", "ImageFolder", "STL10"])
def test_torchvision_data_that_is_not_there(tmp_path, name):
    with pytest.raises(EchosetError, match=f"torchvision:{name}:.*cannot read it"):
        load_images(f"torchvision:{name}:{tmp_path}")
    assert not list(tmp_path.iterdir())  # nothing was downloaded


def test_a_torchvision_name_in_small_letters():
    with pytest.raises(EchosetError, match="should be torchvision:NAME:ROOT"):
        load_images("torchvision:mnist:ROOT")


def test_a_torchvision_data_set_that_cannot_be_read_is_named():
    with pytest.raises(EchosetError, match="torchvision:FakeData:ROOT"):
        load_images("torchvision:FakeData:ROOT")


def test_a_data_set_of_uint8_tensors():
    assert np.array_equal(
        from_dataset([torch.from_numpy(GREY)[None]], "mine", 1, 6).images[0, 0].numpy(), GREY
    )


@pytest.mark.parametrize("value", [1.01, -0.5])
def test_tensors_outside_the_unit_interval_are_not_wrapped(value):
    with pytest.raises(EchosetError, match="mine"):
        from_dataset([torch.full((1, 6, 6), value)], "mine", 1, 6)


def test_float_arrays_are_refused():
    with pytest.raises(EchosetError, match="mine, item 0 is float64 of shape"):
        from_dataset([np.full((6, 6), 0.5)], "mine", 1, 6)


def test_items_that_are_no_pictures_are_named():
    with pytest.raises(EchosetError, match="mine"):
        from_dataset([{"image": GREY}], "mine", 1, 6)
