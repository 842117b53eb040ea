"""Exports read by the libraries that they are for: pixels, labels and answers come back as they were."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from alone import train_alone
from test_exports import make
from torch.utils.data import DataLoader

from distill import TransferSet, ViewOptions, export
from distill.data.augment import make_views
from distill.sets.answers import write_answers
from distill.torchvision_shim import torchvision
from synthesis_kernels.errors import EchosetError

VIEWS = ViewOptions(cutmix=0.5)


def make_answered(folder, channels=3, views=VIEWS, per_image=4):
    """A set on disk with answers to views, which here are drawn at random."""
    data = make(24, channels=channels)
    made = export(data, folder, "set")
    manifest = json.loads((made / "manifest.json").read_text())
    del manifest["checksum"]
    answers = torch.randn(24, per_image, 12, generator=torch.Generator().manual_seed(1)).half()
    # The first view is decided as the image is, so that every class has pictures.
    answers[:, 0] = data.logits
    manifest["answers"] = {
        "per_image": per_image,
        "views": vars(views),
        "seed": 3,
        "precision": "float32",
        "files": [write_answers(made, "shard-00000-of-00001.safetensors", answers)],
    }
    (made / "manifest.json").write_text(json.dumps(manifest))
    return TransferSet.load(made, check_hashes=True)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    return make_answered(tmp_path_factory.mktemp("sets") / "set")


@pytest.fixture(scope="module")
def exported(answered, tmp_path_factory):
    """Each form, of the images and of three views of each."""
    folder = tmp_path_factory.mktemp("exported")
    places = {}
    for form in ("folder", "webdataset", "npz"):
        for views in (0, 3):
            places[form, views] = export(answered, folder / f"{form}{views}", form, views=views)
    return places


def expected(data, views):
    """Pixels (n, H, W, C), labels and answers of every picture, by its name."""
    pictures = {}
    for number in range(len(data)):
        if not views:
            found = data.images[number], int(data.labels[number]), data.logits[number]
            pictures[f"{number:06d}"] = found
        for view in range(views):
            seen = make_views(
                data.images, torch.tensor([number]), torch.tensor([view]), VIEWS, seed=3
            )
            answer = data.answers.tensor[number, view]
            pixels = (seen[0] * 255).round().byte()
            pictures[f"{number:06d}-{view:02d}"] = pixels, int(answer.argmax()), answer
    return {
        name: (pixels.permute(1, 2, 0).numpy(), label, answer.float().numpy())
        for name, (pixels, label, answer) in pictures.items()
    }


def assert_same(found, data, views):
    """Found are (pixels, label, answer) by name."""
    wanted = expected(data, views)
    assert found.keys() == wanted.keys()
    for name, (pixels, label, answer) in found.items():
        assert (np.asarray(pixels) == wanted[name][0]).all(), name
        assert label == wanted[name][1], name
        assert answer is None or np.allclose(answer, wanted[name][2]), name


def stem(path):
    return str(path).replace("\\", "/").rpartition("/train-")[2].removesuffix(".png")


def answers_of(folder):
    with np.load(folder / "answers.npz") as file:
        return [str(path) for path in file["files"]], file["logits"]


@pytest.mark.parametrize("views", [0, 3])
def test_torchvision_reads_the_folder(exported, answered, views):
    folder = exported["folder", views]
    theirs = torchvision.datasets.ImageFolder(folder)
    files, logits = answers_of(folder)
    assert [path for path, _ in theirs.samples] == [str(folder / file) for file in files]
    found = {}
    for (picture, label), file, answer in zip(theirs, files, logits, strict=True):
        found[stem(file)] = picture, label, answer
    assert_same(found, answered, views)


@pytest.mark.slow
@pytest.mark.parametrize("views", [0, 3])
def test_timm_reads_the_folder(exported, answered, views):
    timm_data = pytest.importorskip("timm.data")
    folder = exported["folder", views]
    theirs = timm_data.create_dataset("", root=str(folder))
    files, logits = answers_of(folder)
    found = {}
    for number, (picture, label) in enumerate(theirs):
        assert theirs.filename(number) == files[number]
        found[stem(files[number])] = picture, label, logits[number]
    assert_same(found, answered, views)


@pytest.mark.parametrize("views", [0, 3])
def test_timm_reads_the_archives_by_their_list(exported, answered, views):
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    timm_data = pytest.importorskip("timm.data")
    folder = exported["webdataset", views]
    theirs = timm_data.create_dataset(
        "wds/", root=str(folder), split="train", is_training=False, batch_size=8
    )
    assert len(theirs) == 24 * max(views, 1)
    rows = [(np.asarray(picture), label) for picture, label in theirs]
    names = sorted(expected(answered, views))
    assert_same(
        {name: (*row, None) for name, row in zip(names, rows, strict=True)}, answered, views
    )


@pytest.mark.parametrize("views", [0, 3])
def test_the_package_webdataset_reads_the_archives(exported, answered, views):
    wds = pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    archives = sorted(map(str, exported["webdataset", views].glob("*.tar")))
    found = {}
    for sample in wds.WebDataset(archives, shardshuffle=False).decode("pil"):
        found[sample["__key__"]] = sample["png"], sample["cls"], sample["npy"]
    assert_same(found, answered, views)


@pytest.mark.slow
@pytest.mark.parametrize("views", [0, 3])
@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_hugging_face_reads_what_the_card_says(exported, answered, views, form, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    folder = exported[form, views]
    theirs = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    found = {}
    if form == "webdataset":
        for row in theirs:
            found[row["__key__"]] = row["png"], row["cls"], row["npy"]
    else:
        files, logits = answers_of(folder)
        assert theirs.features["label"].names == [f"{label:02d}" for label in range(12)]
        for row, file, answer in zip(theirs, files, logits, strict=True):
            found[stem(file)] = row["image"], row["label"], answer
    assert_same(found, answered, views)


def test_hugging_faces_imagefolder_reads_the_folder_by_name(exported, answered, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    folder = exported["folder", 0]
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path)
    )
    assert len(theirs) == 24 and set(theirs["label"]) == set(range(12))


@pytest.mark.parametrize("views", [0, 3])
def test_hugging_faces_dataset_and_its_parquet_hold_all(answered, views, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    ours = answered.to_dataset(views)
    ours.to_parquet(tmp_path / "set.parquet")
    read = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "set.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    names = sorted(expected(answered, views))
    for theirs in (ours, read):
        assert theirs.features["label"].num_classes == 12
        found = {}
        for name, row in zip(names, theirs, strict=True):
            assert row["index"] == int(name.partition("-")[0])
            found[name] = row["image"], row["label"], row["logits"]
        assert_same(found, answered, views)


def test_without_datasets_it_is_said_what_to_install(answered, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EchosetError, match="pip install datasets"):
        answered.to_dataset()


@pytest.mark.slow
def test_lightning_trains_on_a_set(answered, tmp_path):
    lightning = pytest.importorskip("lightning", reason="the package lightning is not installed")

    class Student(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(3 * 8 * 8, 12)
            self.seen = []

        def training_step(self, batch, number):
            self.seen += batch.index.tolist()
            given = self.net(batch.image.flatten(1)).log_softmax(1)
            return torch.nn.functional.kl_div(given, batch.logits.softmax(1))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    student = Student()
    before = student.net.weight.detach().clone()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(student, DataLoader(answered, batch_size=5, shuffle=True))
    assert sorted(student.seen) == list(range(24))
    assert not torch.equal(before, student.net.weight)


def test_numpy_reads_views_and_their_answers(exported, answered):
    with np.load(exported["npz", 3] / "set.npz", allow_pickle=False) as arrays:
        views, answers = arrays["views"], arrays["answers"]
    assert views.shape == (24, 3, 8, 8, 3) and answers.shape == (24, 3, 12)
    wanted = expected(answered, 3)
    for number in range(24):
        for view in range(3):
            pixels, _, answer = wanted[f"{number:06d}-{view:02d}"]
            assert (views[number, view] == pixels).all()
            assert np.allclose(answers[number, view], answer)
    with np.load(exported["npz", 0] / "set.npz", allow_pickle=False) as arrays:
        assert (arrays["answers"] == answered.answers.tensor.numpy()).all()
        assert arrays["turns"].shape == (24, 4, 2, 3) and "views" not in arrays


def test_a_set_written_again_keeps_its_answers(answered, tmp_path, monkeypatch):
    import distill.sets.forms.again

    monkeypatch.setattr(distill.sets.forms.again, "SHARD", 10)
    again = TransferSet.load(export(answered, tmp_path / "again", "set"), check_hashes=True)
    assert len(again.manifest["shards"]) == 3
    assert torch.equal(again.answers.tensor, answered.answers.tensor)
    assert (again.answers.views, again.answers.seed) == (VIEWS, 3)


def test_views_that_there_are_no_answers_to_are_refused(answered, tmp_path):
    with pytest.raises(EchosetError, match="answers to 4 views of each image, not to 5"):
        export(answered, tmp_path / "out", views=5)
    with pytest.raises(EchosetError, match="no answers to views"):
        export(make(), tmp_path / "out", views=1)
    with pytest.raises(EchosetError, match="makes its views itself"):
        export(answered, tmp_path / "out", "set", views=1)
    assert not list(tmp_path.iterdir())


def test_a_card_says_where_a_set_comes_from(answered, tmp_path):
    import yaml

    contract = {**answered.manifest["input"], "class_names": [f"a|{n}" for n in range(12)]}
    data = replace(answered, manifest={**answered.manifest, "input": contract})
    folder = export(data, tmp_path / "out", license="cc-by-4.0", notes="It is 0.7 of 1.")
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "cc-by-4.0" and head["size_categories"] == ["n<1K"]
    assert "2 images of each class" in text and "| 3 (a\\|3) | 2 |" in text
    for told in ("network: m", "a" * 64, "4 views of each image", "cutmix 0.5", "It is 0.7 of 1."):
        assert told in text


def test_the_command_writes_views(answered, run, refused, tmp_path):
    made = answered.answers.folder
    said = run("export", made, f"--out={tmp_path / 'v'}", "--views=2", "--license=mit").stdout
    assert "24 images, 2 views of each, 2 to 2 of each class" in said
    assert len(list((tmp_path / "v").glob("*/*.png"))) == 48
    assert "license: mit" in (tmp_path / "v" / "README.md").read_text()
    words = refused("export", made, f"--out={tmp_path / 'w'}", "--views=2", "--images=12")
    assert "no answers to views" in words and not (tmp_path / "w").exists()
    assert "views must be" in refused("export", made, "--views=-1", status=2)


PICTURED = ViewOptions(cutout=0.2)
"""Views that numbers don't tell, so that they are stored as pictures."""
EXPORTS = [
    ("folder", VIEWS),
    ("webdataset", VIEWS),
    ("set", VIEWS),
    ("npz", VIEWS),
    ("npz", PICTURED),
    ("npz", None),
]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("form, views", EXPORTS)
def test_every_exports_script_trains_with_numpy_and_torch_alone(tmp_path, form, views):
    data = make(24, channels=1) if views is None else make_answered(tmp_path / "s", 1, views)
    folder = export(data, tmp_path / "out", form)
    test = tmp_path / "test.npz"
    np.savez(test, images=data.images[:, 0].numpy(), labels=data.labels.numpy())
    flags = ["--steps=20", "--batch=16", f"--test={test}", f"--out={tmp_path / 'student.pt'}"]
    told = train_alone(folder, *flags)
    assert "accuracy" in told and (tmp_path / "student.pt").is_file()
