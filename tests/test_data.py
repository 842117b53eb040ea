import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from distill import evaluate, load_images
from distill.augment import make_views
from distill.data import Images
from distill.evaluation import predict
from distill.options import ViewOptions
from inversion import MNIST_SLICE
from synthesis_kernels.errors import EchosetError

PIXELS = np.arange(3 * 5 * 5, dtype=np.uint8).reshape(3, 5, 5)
LABELS = np.array([2, 0, 1], np.uint8)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


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
        (folder / "t10k-images-idx3-ubyte").write_bytes(idx(PIXELS)[:-1])
        with pytest.raises(EchosetError, match="t10k-images-idx3-ubyte should hold 75 bytes"):
            load_images(tmp_path)


def test_npz_and_folders(tmp_path):
    colour = np.stack([PIXELS] * 3, -1)
    np.savez(tmp_path / "d.npz", test_images=colour, test_labels=LABELS)
    assert load_images(tmp_path / "d.npz").images.shape == (3, 3, 5, 5)
    for name, image in zip("ab", colour, strict=False):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "test" / name / "0.png")
    data = load_images(tmp_path)
    assert data.labels.tolist() == [0, 1] and np.array_equal(data.images[1].permute(1, 2, 0).numpy(), colour[1])
    (tmp_path / "test" / "a" / "1.png").write_bytes(b"no picture")
    with pytest.raises(EchosetError, match=r"1\.png is not a readable picture"):
        load_images(tmp_path)


def test_data_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(EchosetError, match="no data at"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(EchosetError, match="no data set this understands"):
        load_images(tmp_path)
    np.savez(tmp_path / "o.npz", test_images=np.array([{}], dtype=object), test_labels=LABELS)
    with pytest.raises(EchosetError, match=r"o\.npz is not a readable"):  # an object array is a pickle
        load_images(tmp_path / "o.npz")
    np.savez(tmp_path / "n.npz", pictures=PIXELS)
    with pytest.raises(EchosetError, match="it has pictures"):
        load_images(tmp_path / "n.npz")


def test_the_bundled_slice_is_real_mnist_and_the_teacher_reads_it(teacher):
    data = load_images(MNIST_SLICE)
    assert data.images.shape == (2000, 1, 28, 28)
    result = evaluate(teacher, data, teacher, quiet=True)
    assert result.accuracy >= 0.993 and result.agreement == 1 and result.images == 2000
    # Against a count by hand.
    right = (predict(teacher, data.images, torch.device("cpu"), batch=333).argmax(1) == data.labels).float()
    assert result.accuracy == pytest.approx(right.mean().item())
    assert result.per_class[3] == pytest.approx(right[data.labels == 3].mean().item())


def test_evaluation_refuses_what_does_not_fit(teacher):
    with pytest.raises(EchosetError, match="images of shape"):
        evaluate(teacher, Images(torch.zeros(2, 3, 28, 28, dtype=torch.uint8), torch.zeros(2).long(), "rgb"), quiet=True)
    with pytest.raises(EchosetError, match="labels from 0 to 12"):
        evaluate(teacher, Images(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 12]), "odd"), quiet=True)


def test_a_class_without_images_has_no_accuracy(teacher):
    result = evaluate(teacher, Images(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1]), "few"), quiet=True)
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
        torch.testing.assert_close(make_views(images, index, torch.full((3,), 3), options, 0), one[index])
    flipped = [torch.equal(m, i.flip(2)) for m, i in zip(all_views(images, replace(still, flip=True)), images / 255, strict=True)]
    assert 16 < sum(flipped) < 48


@pytest.mark.parametrize("rotate", [0.0, 1e-6])  # by whole pixels, and resampled
def test_a_shift_moves_by_the_stated_part_of_the_side_at_most(rotate):
    image = torch.zeros(200, 1, 20, 20, dtype=torch.uint8)
    image[:, :, 10, 10] = 255
    views = all_views(image, ViewOptions(rotate=rotate, scale=0, shift=0.2))
    rows, columns = (views.sum(d).flatten(1) @ torch.arange(20.0) / views.sum((1, 2, 3)) for d in (3, 2))
    assert 3 < (rows - 10).abs().max() <= 4.01 and 3 < (columns - 10).abs().max() <= 4.01
