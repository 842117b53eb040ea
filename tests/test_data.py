import gzip
import struct
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill import evaluate, load_images
from distill.data.augment import make_views
from distill.data.images import Images, from_dataset
from distill.data.pixels import fit_pixels
from distill.data.readers import READERS
from distill.evaluation import predict
from distill.options import ViewOptions
from distill.runtime import Runtime
from inversion import MNIST_SLICE
from synthesis_kernels.errors import EchosetError

PIXELS = np.arange(3 * 5 * 5, dtype=np.uint8).reshape(3, 5, 5)
LABELS = np.array([2, 0, 1], np.uint8)


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.mark.parametrize("below, suffix", [("MNIST/raw", ""), ("raw", ".gz"), (".", "")])
def test_mnist_files(tmp_path, below, suffix):
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    (folder / f"t10k-images-idx3-ubyte{suffix}").write_bytes(pack(idx(PIXELS)))
    (folder / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(LABELS)))
    data = load_images(tmp_path)
    assert np.array_equal(data.images[:, 0].numpy(), PIXELS) and data.labels.tolist() == [2, 0, 1]
    if not suffix:
        for damaged in (idx(PIXELS)[:-1], idx(PIXELS) + b"0"):
            (folder / "t10k-images-idx3-ubyte").write_bytes(damaged)
            with pytest.raises(EchosetError, match="t10k-images-idx3-ubyte should hold 75 bytes"):
                load_images(tmp_path)


def test_npz_and_folders(tmp_path):
    colour = np.stack([PIXELS] * 3, -1)
    np.savez(tmp_path / "d.npz", test_images=colour, test_labels=LABELS)
    assert load_images(tmp_path / "d.npz").images.shape == (3, 3, 5, 5)
    for name, image in zip("ab", colour, strict=False):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "test" / name / "0.png")
        (tmp_path / "test" / name / "._0.png").write_bytes(
            b"what macOS leaves beside files on other disks"
        )
    data = load_images(tmp_path)
    assert data.labels.tolist() == [0, 1] and np.array_equal(
        data.images[1].permute(1, 2, 0).numpy(), colour[1]
    )
    (tmp_path / "test" / "a" / "1.png").write_bytes(b"no picture")
    with pytest.raises(EchosetError, match=r"1\.png is not a readable picture"):
        load_images(tmp_path)


def test_data_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(EchosetError, match="no data at"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(EchosetError, match="no data set this understands"):
        load_images(tmp_path)
    np.savez(tmp_path / "o.npz", test_images=np.array([{}], dtype=object), test_labels=LABELS)
    with pytest.raises(
        EchosetError, match=r"o\.npz is not a readable"
    ):  # an object array is a pickle
        load_images(tmp_path / "o.npz")
    np.savez(tmp_path / "n.npz", pictures=PIXELS)
    with pytest.raises(EchosetError, match="it has pictures"):
        load_images(tmp_path / "n.npz")


def test_the_bundled_slice_is_real_mnist_and_the_teacher_reads_it(teacher):
    data = load_images(MNIST_SLICE)
    assert data.images.shape == (2000, 1, 28, 28)
    result = evaluate(teacher, data, teacher, runtime=Runtime(device="cpu", quiet=True))
    assert result.accuracy >= 0.993 and result.agreement == 1 and result.images == 2000
    # Against a count by hand.
    right = (
        predict(teacher, data.images, torch.device("cpu"), batch=333).argmax(1) == data.labels
    ).float()
    assert result.accuracy == pytest.approx(right.mean().item())
    assert result.per_class[3] == pytest.approx(right[data.labels == 3].mean().item())


def test_evaluation_refuses_what_does_not_fit(teacher):
    with pytest.raises(EchosetError, match="images of shape"):
        evaluate(
            teacher,
            Images(torch.zeros(2, 3, 28, 28, dtype=torch.uint8), torch.zeros(2).long(), "rgb"),
            runtime=Runtime(device="cpu", quiet=True),
        )
    with pytest.raises(EchosetError, match="labels from 0 to 12"):
        evaluate(
            teacher,
            Images(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 12]), "odd"),
            runtime=Runtime(device="cpu", quiet=True),
        )


def test_a_class_without_images_has_no_accuracy(teacher):
    result = evaluate(
        teacher,
        Images(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1]), "few"),
        runtime=Runtime(device="cpu", quiet=True),
    )
    assert result.per_class[5] is None


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


GREY = np.arange(0, 252, 7, dtype=np.uint8).reshape(6, 6)
COLOUR = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)


def write_pictures(folder, *pictures):
    """0.png, 1.png, … of arrays or Pillow pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(
            folder / f"{number}.png"
        )
    return folder


def write_mnist(folder):
    """All four files of MNIST: three images of 5 × 5 to test, two to train."""
    folder.mkdir(parents=True)
    for name, images, labels in (("t10k", PIXELS, LABELS), ("train", 255 - PIXELS[:2], LABELS[:2])):
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))


def luma(array):
    return array.astype(float) @ [0.299, 0.587, 0.114]


def test_images_without_labels_load_without_labels(tmp_path):
    np.savez(tmp_path / "split.npz", test_images=PIXELS)
    np.savez(tmp_path / "plain.npz", images=np.stack([PIXELS] * 3, -1))
    assert (
        load_images(tmp_path / "split.npz").labels is None
        and load_images(tmp_path / "plain.npz").labels is None
    )
    assert np.array_equal(load_images(tmp_path / "plain.npz", "train").images[:, 2].numpy(), PIXELS)
    write_pictures(tmp_path / "side-by-side", GREY, GREY.T)
    write_pictures(tmp_path / "below" / "test", GREY, GREY.T)
    for folder in ("side-by-side", "below"):
        data = load_images(tmp_path / folder)
        assert data.labels is None and np.array_equal(data.images[:, 0].numpy(), [GREY, GREY.T])
    chosen = data.chosen(torch.tensor([1, 1, 0]))
    assert (
        chosen.labels is None
        and len(chosen) == 3
        and np.array_equal(chosen.images[0, 0].numpy(), GREY.T)
    )


def test_a_split_with_its_own_folder_is_what_is_read(tmp_path):
    write_pictures(tmp_path / "train" / "a", GREY)
    write_pictures(tmp_path / "test" / "a", GREY.T)
    assert np.array_equal(load_images(tmp_path, "train").images[0, 0].numpy(), GREY)
    assert np.array_equal(load_images(tmp_path, "test").images[0, 0].numpy(), GREY.T)


def test_labels_that_do_not_match_the_images_are_refused(tmp_path):
    np.savez(tmp_path / "n.npz", images=PIXELS, labels=LABELS[:2])
    with pytest.raises(EchosetError, match=r"n\.npz: 3 images but 2 labels"):
        load_images(tmp_path / "n.npz")
    np.savez(tmp_path / "f.npz", images=PIXELS, labels=LABELS / 2)
    with pytest.raises(EchosetError, match=r"f\.npz: labels are float64"):
        load_images(tmp_path / "f.npz")
    np.savez(tmp_path / "0.npz", images=PIXELS[:0])
    with pytest.raises(EchosetError, match=r"0\.npz: 0 images"):
        load_images(tmp_path / "0.npz")


def test_pictures_of_all_modes_become_what_the_network_takes(tmp_path):
    palette = Image.fromarray(COLOUR).quantize(8)
    folder = write_pictures(tmp_path / "p", GREY, COLOUR, palette, Image.fromarray(GREY > 99))
    colours = np.asarray(palette.convert("RGB"))
    rgb = load_images(folder, channels=3, size=6).images.permute(0, 2, 3, 1).numpy()
    for found, expected in zip(rgb, (np.stack([GREY] * 3, -1), COLOUR, colours), strict=False):
        assert np.array_equal(found, expected)
    grey = load_images(folder, channels=1, size=6).images[:, 0].numpy()
    assert np.array_equal(grey[0], GREY) and np.array_equal(grey[3], np.where(GREY > 99, 255, 0))
    assert (
        abs(grey[1] - luma(COLOUR)).max() <= 0.501 and abs(grey[2] - luma(colours)).max() <= 0.501
    )


def test_pictures_of_different_sizes_need_a_size(tmp_path):
    large = np.full((9, 9), 77, np.uint8)
    for name, pictures in (("sizes", (GREY, large)), ("modes", (GREY, COLOUR))):
        folder = write_pictures(tmp_path / name, *pictures)
        with pytest.raises(EchosetError, match=rf"{name}/1\.png is \("):
            load_images(folder)
    data = load_images(tmp_path / "sizes", channels=3, size=6)
    assert data.images.shape == (2, 3, 6, 6) and (data.images[1] == 77).all()
    assert np.array_equal(data.images[0, 1].numpy(), GREY)


def test_channels_and_size_come_together(tmp_path):
    np.savez(tmp_path / "d.npz", images=PIXELS)
    for half in ({"channels": 1}, {"size": 28}):
        with pytest.raises(EchosetError, match="both channels and size"):
            load_images(tmp_path / "d.npz", **half)
    data = load_images(tmp_path / "d.npz", channels=3, size=28)
    assert data.images.shape == (3, 3, 28, 28) and data.images.dtype is torch.uint8


@given(
    st.integers(0, 255),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 3]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
)
@settings(max_examples=20)
def test_a_constant_image_stays_constant(value, before, after, height, width, size):
    found = fit_pixels(
        torch.full((2, before, height, width), value, dtype=torch.uint8), after, size
    )
    assert (
        found.shape == (2, after, size, size)
        and found.dtype is torch.uint8
        and (found == value).all()
    )


@pytest.mark.parametrize("size", [3, 8, 17])
def test_resizing_is_what_pillow_does(size):
    picture = np.random.default_rng(1).integers(0, 256, (12, 10), dtype=np.uint8)
    ours = fit_pixels(torch.from_numpy(picture)[None, None], 1, size)[0, 0].numpy().astype(int)
    theirs = np.asarray(
        Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR)
    ).astype(int)
    assert abs(ours - theirs).max() <= 1


def test_pixels_that_fit_come_back_as_they_are():
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert fit_pixels(pixels, 3, 8) is pixels
    data = Images(pixels, torch.tensor([1, 0]), "x")
    assert data.fitted(3, 8).images is pixels and data.fitted(1, 4).labels.tolist() == [1, 0]
    many = torch.randint(
        0, 256, (2050, 1, 4, 4), dtype=torch.uint8
    )  # more than are converted at once
    assert torch.equal(fit_pixels(many, 3, 4), many.expand(-1, 3, -1, -1))
    with pytest.raises(EchosetError, match="2 channels"):
        fit_pixels(pixels[:, :2], 3, 8)


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


def test_evaluation_refuses_images_without_labels(teacher):
    with pytest.raises(EchosetError, match="mine has no labels to judge by"):
        evaluate(
            teacher,
            Images(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), None, "mine"),
            runtime=Runtime(device="cpu", quiet=True),
        )


def test_a_torchvision_name_in_small_letters():
    with pytest.raises(EchosetError, match="should be torchvision:NAME:ROOT"):
        load_images("torchvision:mnist:ROOT")


def test_a_torchvision_data_set_that_cannot_be_read_is_named():
    with pytest.raises(EchosetError, match="torchvision:FakeData:ROOT"):
        load_images("torchvision:FakeData:ROOT")


def test_a_small_first_picture_does_not_blur_the_others(tmp_path):
    write_pictures(tmp_path / "a", COLOUR[:2, :2], COLOUR)
    theirs = load_images(f"torchvision:ImageFolder:{tmp_path}", channels=3, size=6)
    assert torch.equal(theirs.images, load_images(tmp_path, channels=3, size=6).images)


def test_one_of_several_data_sets_has_to_be_named(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw")
    for name in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / name).mkdir()
        with pytest.raises(
            EchosetError, match=r"several data sets; name one of .*MNIST/raw.*cifar-10-batches-py"
        ):
            load_images(tmp_path)
    assert np.array_equal(load_images(tmp_path / "MNIST").images[:, 0].numpy(), PIXELS)
    write_mnist(tmp_path / "MNIST" / "raw" / "raw")
    assert (
        len(load_images(tmp_path / "MNIST" / "raw")) == 3
    )  # what lies at the path itself comes first
    with pytest.raises(EchosetError, match="cifar-100-python: CIFAR100 is incomplete"):
        load_images(tmp_path / "cifar-100-python")


def test_labels_in_a_column_and_labels_that_nobody_wants(tmp_path):
    np.savez(tmp_path / "d.npz", images=PIXELS, labels=LABELS[:, None])
    assert load_images(tmp_path / "d.npz").labels.tolist() == LABELS.tolist()
    np.savez(tmp_path / "odd.npz", images=PIXELS, labels=np.zeros((3, 4)))
    assert load_images(tmp_path / "odd.npz", labelled=False).labels is None
    with pytest.raises(EchosetError, match=r"expected integers \(N,\)"):
        load_images(tmp_path / "odd.npz")


def test_grey_among_colour_is_told_as_such(tmp_path):
    write_pictures(tmp_path / "a", GREY, COLOUR)
    with pytest.raises(EchosetError, match="make them all grey or all colour"):
        load_images(tmp_path)


def test_fashion_mnist_under_its_root(tmp_path):
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    assert np.array_equal(load_images(tmp_path).images[:, 0].numpy(), PIXELS)


def test_another_name_of_a_split(tmp_path):
    write_pictures(tmp_path / "val" / "a", GREY)
    assert load_images(tmp_path, "val").labels.tolist() == [0]


def test_other_numbers_of_channels_that_fit():
    pixels = torch.zeros(2, 4, 8, 8, dtype=torch.uint8)
    assert fit_pixels(pixels, 4, 8) is pixels


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


def test_sixteen_bit_pictures(tmp_path):
    folder = write_pictures(tmp_path / "deep", GREY.astype(np.uint16) * 257)
    images = load_images(folder, channels=1, size=6).images
    assert abs(images[0, 0].numpy().astype(int) - GREY).max() <= 1


def test_reading_pictures_warns_of_nothing(tmp_path):
    folder = write_pictures(tmp_path / "p", GREY)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_images(folder)
    finally:
        torch.set_warn_always(False)


def test_class_folders_must_be_full_and_alone(tmp_path):
    for name in "bc":
        write_pictures(tmp_path / name, GREY)
    (tmp_path / "a").mkdir()
    with pytest.raises(EchosetError, match="a is a class without pictures"):
        load_images(tmp_path)
    (tmp_path / "a").rmdir()
    write_pictures(tmp_path, GREY)
    with pytest.raises(EchosetError, match=r"0\.png lies beside folders of classes"):
        load_images(tmp_path)


def test_a_class_that_a_split_lacks_moves_no_other_up(tmp_path):
    """The train split says which classes there are."""
    for name in "abc":
        write_pictures(tmp_path / "train" / name, GREY)
    write_pictures(tmp_path / "test" / "c", GREY)
    for root in (tmp_path, tmp_path / "test"):
        assert load_images(root, "test").labels.tolist() == [2]
    (tmp_path / "test" / "b").mkdir()
    assert load_images(tmp_path, "test").labels.tolist() == [2]
    assert load_images(tmp_path, "train").labels.tolist() == [0, 1, 2]
    write_pictures(tmp_path / "test" / "d", GREY)
    with pytest.raises(EchosetError, match=r"train lacks the class 'd' of .*test, which lacks 'a'"):
        load_images(tmp_path, "test")
    for name in "ab":
        write_pictures(tmp_path / "test" / name, GREY)
    assert load_images(tmp_path, "test").labels.tolist() == [
        0,
        1,
        2,
        3,
    ]  # a train split with a part of the classes


def test_another_layout_beside_a_split_says_nothing_about_its_classes(tmp_path):
    write_pictures(tmp_path / "train" / "images", GREY)
    (tmp_path / "train" / "annotations").mkdir()
    for name in "ab":
        write_pictures(tmp_path / "test" / name, GREY)
    assert load_images(tmp_path, "test").labels.tolist() == [0, 1]


def test_a_class_without_pictures_in_any_split_is_refused_and_links_and_dots_are_followed(
    tmp_path, monkeypatch
):
    for name in "abc":
        write_pictures(tmp_path / "root" / "train" / name, GREY)
    write_pictures(tmp_path / "elsewhere" / "c", GREY)
    (tmp_path / "root" / "test").symlink_to(tmp_path / "elsewhere")
    assert load_images(tmp_path / "root", "test").labels.tolist() == [2]
    monkeypatch.chdir(tmp_path / "root" / "train")
    assert load_images("../test", "test").labels.tolist() == [2]
    (tmp_path / "root" / "train" / "b" / "0.png").unlink()
    with pytest.raises(EchosetError, match="b is a class without pictures"):
        load_images(tmp_path / "root", "test")


def test_a_class_called_train_is_no_split(tmp_path):
    for name in ("train", "tractor"):
        write_pictures(tmp_path / name, GREY)
    for split in ("train", "test"):
        with pytest.raises(EchosetError, match="is 'train' what to train or test with, or a class"):
            load_images(tmp_path, split)
    assert len(load_images(tmp_path, "train", labelled=False)) == 1  # where no class counts
    write_pictures(
        tmp_path / "test", GREY
    )  # beside one another they are splits, whatever else is there
    assert len(load_images(tmp_path, "train")) == len(load_images(tmp_path / "tractor"))


def test_a_folder_of_other_splits_is_not_one_class(tmp_path):
    write_pictures(tmp_path / "train" / "a", GREY)
    with pytest.raises(EchosetError, match="has no folder 'test', but train"):
        load_images(tmp_path)


def test_a_picture_is_what_its_name_says(tmp_path, monkeypatch):
    """Pillow would hand PostScript to another program."""
    (tmp_path / "x.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    )
    with pytest.raises(EchosetError, match=r"x\.png is not a readable picture"):
        load_images(tmp_path, labelled=False)
    Image.new("L", (40, 30)).save(tmp_path / "x.png")
    monkeypatch.setenv("ECHOSET_LIMIT_MB", "0")
    with pytest.raises(
        EchosetError, match=r"its 40 × 30 pixels would take 0 MB.*ECHOSET_LIMIT_MB=1 in"
    ):
        load_images(tmp_path, labelled=False)


@pytest.mark.parametrize("shape", [(10, 0, 5), (2**31, 2**31, 4)])
def test_idx_files_without_pixels_or_of_impossible_shapes(tmp_path, shape):
    header = bytes([0, 0, 8, 3]) + np.array(shape, ">u4").tobytes()
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(header)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(
        bytes([0, 0, 8, 1]) + np.array([10], ">u4").tobytes() + bytes(10)
    )
    with pytest.raises(
        EchosetError, match=r"images have no pixels|should hold 18446744073709551616 bytes"
    ):
        load_images(tmp_path)


def test_a_layout_is_a_line_in_the_table(tmp_path, monkeypatch):
    """One that numbers a picture's rows: read where it lies, found below, and named in refusals."""

    class Rows:
        def describe(self, split):
            return f"{split}.rows"

        def is_at(self, path, split):
            return (path / f"{split}.rows").is_file()

        def find_below(self, root, split):
            return [path.parent for path in root.glob(f"*/{split}.rows")]

        def read(self, path, request):
            text = (path / f"{request.split}.rows").read_bytes()
            return torch.tensor(list(text), dtype=torch.uint8).view(1, 1, 1, -1), None

    monkeypatch.setattr("distill.data.readers.READERS", (*READERS, Rows()))
    with pytest.raises(EchosetError, match=r"cifar-10-batches-py, test\.rows, or folders of"):
        load_images(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "test.rows").write_bytes(b"\1\2\3")
    for root in (tmp_path, tmp_path / "a"):
        assert load_images(root).images.tolist() == [[[[1, 2, 3]]]]
    write_mnist(tmp_path / "MNIST" / "raw")
    with pytest.raises(EchosetError, match=r"several data sets; name one of .*MNIST/raw, .*/a$"):
        load_images(tmp_path)
