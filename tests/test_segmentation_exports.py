"""Label maps as pictures, and sets of them exported."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from alone import train_alone
from hues import COUNT, NAMES, SIZE, hues_teacher, patches, same_map, write_set
from PIL import Image

from distill import TransferSet, export
from distill.data.palette import colours, css_colour, paint, to_indexed_png
from distill.tasks.places import VOID, decide


@pytest.fixture(scope="module")
def teacher():
    return hues_teacher()


@pytest.fixture(scope="module")
def folder(teacher, tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("sets") / "set", teacher, patches())


@pytest.fixture(scope="module")
def data(folder):
    return TransferSet.load(folder)


def test_colours_of_classes_are_told_apart():
    table = np.array(colours()).astype(int)
    apart = np.abs(table[:, None] - table).sum(2) + 999 * np.eye(256, dtype=int)
    assert apart.min() > 40 and colours()[255] == (0, 0, 0)
    assert css_colour(1) == "#e6194b"


def test_a_label_map_is_a_picture_that_loses_nothing():
    label = torch.randint(0, 255, SIZE)
    label[0, :3] = VOID
    picture = Image.open(io.BytesIO(to_indexed_png(label)))
    assert picture.size == (24, 16) and same_map(picture, label.where(label >= 0, 255))
    painted = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    assert torch.equal(paint(label), torch.from_numpy(painted.copy()))


def test_a_folder_has_a_map_of_its_name_for_each_picture(data, tmp_path):
    out = export(data, tmp_path / "out")
    pictures = sorted((out / "images").iterdir())
    assert len(pictures) == COUNT and pictures[3].name == "train-000003.png"
    for picture, image, label in zip(pictures, data.images, data.labels, strict=True):
        assert (np.asarray(Image.open(picture)) == image.movedim(0, 2).numpy()).all()
        assert same_map(Image.open(out / "labels" / picture.name), label)
    assert (out / "classes.txt").read_text().splitlines() == list(NAMES)
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert rows[3]["label_file_name"] == "labels/train-000003.png"
    with np.load(out / "answers.npz") as file:
        assert file["files"][3] == "images/train-000003.png"
        assert (file["logits"] == data.logits.numpy()).all()
    card = (out / "README.md").read_text()
    assert "image-segmentation" in card and "labels/*.png" in card and "classes.txt" in card
    shares = [count / sum(data.counts()) for count in data.counts()]
    assert f"{min(shares):.1%} to {max(shares):.1%} of the pixels of each class" in card
    assert f"| 2 (water) | {shares[2]:.1%} |" in card


def test_archives_have_maps_beside_pictures(data, tmp_path):
    out = export(data, tmp_path / "out", "webdataset")
    with tarfile.open(out / "set-00000.tar") as archive:
        assert archive.getnames()[:3] == ["000000.png", "000000.seg.png", "000000.npy"]
        assert same_map(Image.open(archive.extractfile("000005.seg.png")), data.labels[5])
        logits = np.load(io.BytesIO(archive.extractfile("000005.npy").read()))
        assert (logits == data.logits[5].numpy()).all()
    assert ".seg.png (the label map" in (out / "README.md").read_text()


def test_webdataset_gives_maps_by_its_handler_for_such_endings(data, tmp_path):
    wds = pytest.importorskip("webdataset")
    out = export(data, tmp_path / "out", "webdataset")

    def read(written):
        return np.asarray(Image.open(io.BytesIO(written)))

    archive = wds.WebDataset(str(out / "set-00000.tar"), shardshuffle=False)
    samples = list(archive.decode(wds.handle_extension("seg.png", read), "pil"))
    assert len(samples) == COUNT
    for sample, label in zip(samples, data.labels, strict=True):
        assert (sample["seg.png"] == label.numpy()).all() and sample["png"].size == (24, 16)


def test_hugging_face_gives_pairs(data, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    out = export(data, tmp_path / "out")
    rows = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == COUNT
    for row, label in zip(rows, data.labels, strict=True):
        assert row["image"].size == (24, 16) and same_map(row["label"], label)


def test_npz_and_set_hold_the_maps(data, tmp_path):
    with np.load(export(data, tmp_path / "npz", "npz") / "set.npz") as file:
        assert (file["labels"] == data.labels.numpy()).all()
        assert file["logits"].shape == (COUNT, 4, *SIZE)
        assert tuple(file["class_names"]) == NAMES
    again = TransferSet.load(export(data, tmp_path / "set", "set"))
    assert torch.equal(again.labels, data.labels) and again.class_names == NAMES


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "npz"])
def test_the_script_beside_an_export_trains_on_maps(data, teacher, tmp_path, form):
    out = export(data, tmp_path / "out", form)
    test = tmp_path / "test.npz"
    images = patches(8, seed=9)
    labels = decide(teacher(images.float() / 255)).numpy()
    labels[:, 0] = 255  # void
    np.savez(test, images=images.movedim(1, 3).numpy(), labels=labels.astype(np.uint8))
    flags = ["--steps=100", "--batch=8", f"--test={test}", f"--out={tmp_path / 'student.pt'}"]
    lines = train_alone(out, *flags).splitlines()
    told = {line.split(" on ")[0] for line in lines if " on " in line}
    figures = {text.rpartition(" ")[0]: text.rpartition(" ")[2] for text in told}
    assert float(figures["accuracy"].rstrip("%")) > 60
    assert 30 < float(figures["mean IoU"].rstrip("%")) < 100
