"""Data sets in files: each layout, and what is wrong with one."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image
from writing import GREY, LABELS, PIXELS, idx, write_mnist, write_pictures

from distill import evaluate, load_images
from distill.data.images import Images
from distill.data.readers import READERS
from distill.evaluation import predict
from distill.runtime import Runtime
from inversion import MNIST_SLICE
from synthesis_kernels.errors import EchosetError


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


def test_evaluation_refuses_images_without_labels(teacher):
    with pytest.raises(EchosetError, match="mine has no labels to judge by"):
        evaluate(
            teacher,
            Images(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), None, "mine"),
            runtime=Runtime(device="cpu", quiet=True),
        )


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


def test_fashion_mnist_under_its_root(tmp_path):
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    assert np.array_equal(load_images(tmp_path).images[:, 0].numpy(), PIXELS)


def test_another_name_of_a_split(tmp_path):
    write_pictures(tmp_path / "val" / "a", GREY)
    assert load_images(tmp_path, "val").labels.tolist() == [0]


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
