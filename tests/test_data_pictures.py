"""Pictures of every mode and size, as the network takes them."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from writing import COLOUR, GREY, PIXELS, write_pictures

from distill import load_images
from distill.data.images import Images
from distill.data.pixels import fit_pixels
from synthesis_kernels.errors import EchosetError


def luma(array):
    return array.astype(float) @ [0.299, 0.587, 0.114]


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


def test_a_small_first_picture_does_not_blur_the_others(tmp_path):
    write_pictures(tmp_path / "a", COLOUR[:2, :2], COLOUR)
    theirs = load_images(f"torchvision:ImageFolder:{tmp_path}", channels=3, size=6)
    assert torch.equal(theirs.images, load_images(tmp_path, channels=3, size=6).images)


def test_grey_among_colour_is_told_as_such(tmp_path):
    write_pictures(tmp_path / "a", GREY, COLOUR)
    with pytest.raises(EchosetError, match="make them all grey or all colour"):
        load_images(tmp_path)


def test_other_numbers_of_channels_that_fit():
    pixels = torch.zeros(2, 4, 8, 8, dtype=torch.uint8)
    assert fit_pixels(pixels, 4, 8) is pixels


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
