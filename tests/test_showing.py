"""A set at a glance."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_exports import make

from synthesis_kernels.errors import EchosetError


def test_a_line_says_what_a_set_is():
    assert repr(make()) == ("TransferSet(40 images 3×8×8, 12 classes of 3 to 4, by ssd-kd, from m)")


@pytest.mark.parametrize("channels, mode", [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB")])
def test_a_sheet_has_a_row_of_pictures_for_a_class(channels, mode):
    data = make(channels=channels)
    sheet = data.show(rows=3, columns=2)
    assert sheet.mode == mode and sheet.size == (18 * 8, 28 * 8)  # enlarged eight times
    pixels = np.asarray(sheet)[::8, ::8].reshape(28, 18, -1)
    for row, label in enumerate((0, 4, 8)):
        for column, place in enumerate(data.labels.eq(label).nonzero().flatten()[:2]):
            shown = pixels[row * 10 : row * 10 + 8, column * 10 : column * 10 + 8]
            image = data.images[place].movedim(0, -1).numpy()
            assert (shown == image[..., : shown.shape[-1]]).all()


def test_a_class_without_images_has_no_row():
    data = replace(make(4, 12), labels=torch.tensor([5, 5, 7, 7]))
    assert data.show(columns=1).size == (64, 18 * 8)
    with pytest.raises(EchosetError, match="1 row and 1 column at least"):
        data.show(rows=0)


def test_a_notebook_shows_line_and_sheet():
    data = make()
    data.manifest["teacher"]["model"] = "<script>"
    shown = data._repr_html_()
    assert "data:image/png;base64," in shown and "<script>" not in shown
    assert "&lt;script&gt;" in shown and "40 images" in shown
