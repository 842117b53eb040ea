import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import distill.sets.forms.again
import distill.sets.forms.content
import distill.sets.forms.webdataset
from distill import TransferSet, export, load_images, merge, subsample
from distill.sets.shards import DTYPES
from distill.sets.transfer_set import raw_counts
from distill.tasks.words import Words
from distill.torchvision_shim import torchvision
from inversion.pages.set_sections import source_names
from synthesis_kernels.errors import EchosetError


def make(count=40, classes=12, channels=3, seed=0, teacher="a" * 64, size=8):
    """A set of pictures that PNG has to keep to the bit; every class has some."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    logits = torch.randn(count, classes, generator=random)
    logits[torch.arange(count), labels] += 9
    contract = {
        "channels": channels,
        "size": size,
        "classes": classes,
        "task": "classification",
        "mean": [0.5],
        "std": [0.25],
    }
    manifest = {
        "code_version": "0",
        "method": "ssd-kd",
        "config": {"images": count},
        "seed": seed,
        "input": contract,
    }
    manifest |= {
        "teacher": {"model": "m", "weight_hash": teacher},
        "counts": torch.bincount(labels).tolist(),
        "shards": [],
    }
    return TransferSet(
        torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=random),
        labels,
        logits.half(),
        torch.rand(count, generator=random),
        torch.arange(count, dtype=torch.int32),
        manifest,
    )


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in DTYPES)


@pytest.mark.parametrize("channels", [1, 3])
def test_folders_are_read_by_torchvision_and_by_us_with_the_same_classes(tmp_path, channels):
    data = make(channels=channels)
    folder = export(data, tmp_path / "out", "folder")
    theirs = torchvision.datasets.ImageFolder(folder, loader=Image.open)
    assert theirs.classes == [
        f"{label:02d}" for label in range(12)
    ]  # "10" must not come before "2"
    order = data.labels.argsort(stable=True)
    for (picture, label), number in zip(theirs, order, strict=True):
        pixels = torch.from_numpy(np.array(picture)).view(8, 8, channels).permute(2, 0, 1)
        assert torch.equal(pixels, data.images[number]) and label == data.labels[number]
    ours = load_images(folder, "train")
    assert torch.equal(ours.images, data.images[order]) and torch.equal(
        ours.labels, data.labels[order]
    )
    assert json.loads((folder / "about.json").read_text())["input"]["mean"] == [0.5]


def test_a_class_without_images_would_give_its_number_away(tmp_path):
    data = make()
    keep = data.labels != 3
    less = replace(data, **{name: getattr(data, name)[keep] for name in DTYPES})
    with pytest.raises(EchosetError, match="class 3 has no images"):
        export(less, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    assert (export(less, tmp_path / "out", "npz") / "set.npz").is_file()


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_holds_everything(tmp_path, channels):
    data = make(channels=channels)
    path = export(data, tmp_path / "out", "npz") / "set.npz"
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["images"].shape == ((40, 8, 8) if channels == 1 else (40, 8, 8, 3))
        for name in ("labels", "logits", "priority"):
            assert (arrays[name] == getattr(data, name).numpy()).all()
        assert arrays["mean"] == 0.5 and arrays["std"] == 0.25
    ours = load_images(path)
    assert torch.equal(ours.images, data.images) and torch.equal(ours.labels, data.labels)


def test_archives_hold_each_image_with_its_class_and_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(distill.sets.forms.webdataset, "SHARD", 16)
    data = make()
    for name in ("one", "two"):
        export(data, tmp_path / name, "webdataset")
    assert [path.name for path in sorted((tmp_path / "one").glob("*.tar"))] == [
        f"set-{n:05d}.tar" for n in range(3)
    ]
    number = 0
    for path in sorted((tmp_path / "one").glob("*.tar")):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        with tarfile.open(path) as archive:
            files = {entry.name: archive.extractfile(entry).read() for entry in archive}
        for stem in dict.fromkeys(name.split(".")[0] for name in files):
            pixels = torch.from_numpy(
                np.array(Image.open(io.BytesIO(files[f"{stem}.png"])))
            ).permute(2, 0, 1)
            assert int(stem) == number and torch.equal(pixels, data.images[number])
            assert int(files[f"{stem}.cls"]) == data.labels[number]
            assert (np.load(io.BytesIO(files[f"{stem}.npy"])) == data.logits[number].numpy()).all()
            number += 1
    assert number == 40


def test_a_set_written_again_is_a_set(tmp_path, monkeypatch):
    monkeypatch.setattr(distill.sets.forms.again, "SHARD", 16)
    one, other = make(40), make(9, seed=1)
    merged = merge([one, other])
    found = TransferSet.load(export(merged, tmp_path / "out", "set"), check_hashes=True)
    assert same(found, merged) and len(found.manifest["shards"]) == 4
    assert torch.equal(found.images, torch.cat([one.images, other.images]))
    assert torch.equal(found.priority[:40], one.priority / one.priority.mean())
    none = replace(other, priority=torch.zeros(9))  # collected images have none
    assert torch.equal(merge([one, none]).priority[40:], torch.ones(9))
    assert [part["config"] for part in found.manifest["config"]["of"]] == [
        {"images": 40},
        {"images": 9},
    ]
    assert merge([one]) is one
    nested = subsample(merge([found, one]), 30)
    assert [part["method"] for part in nested.manifest["config"]["of"]] == ["merged"]


def test_what_was_drawn_before_filtering_stays_known():
    one, other = make(), make(seed=1)
    one.manifest["raw_counts"], other.manifest["collection"] = (
        [9] * 12,
        {"raw_counts": [1, 3] * 6, "sources": ["shaders"]},
    )
    assert raw_counts(merge([one, other]).manifest) == [10, 12] * 6
    assert raw_counts(subsample(other, 12).manifest) == [1, 3] * 6
    assert raw_counts(merge([one, make(seed=2)]).manifest) is None


def test_reports_name_every_source_however_sets_were_put_together():
    one, other = make(), make(seed=1)
    other.manifest["collection"] = {"raw_counts": [1] * 12, "sources": ["shaders"]}
    assert source_names(subsample(one, 20).manifest) == ["a generator"]
    assert source_names(merge([subsample(one, 20), other]).manifest) == ["a generator", "shaders"]
    assert source_names(merge([merge([one, one]), subsample(other, 12)]).manifest) == [
        "a generator",
        "shaders",
    ]


def test_what_can_not_be_merged_is_named():
    with pytest.raises(EchosetError, match=r"runs/b was made by another teacher"):
        merge([make(), make(teacher="b" * 64)], ["runs/a", "runs/b"])
    with pytest.raises(EchosetError, match="another size than the first"):
        merge([make(), make(size=16)])
    with pytest.raises(EchosetError, match="no transfer set"):
        merge([])


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(2, 7), st.integers(0, 5))
def test_a_part_of_a_set_is_as_balanced_as_can_be(images, classes, seed):
    data = make(60, classes, 1, seed)
    part = subsample(data, images, seed)
    counts = part.counts()
    assert len(part) == images and max(counts) - min(counts) <= 1
    places = part.round.long()  # here an image's own number
    chosen = {name: getattr(data, name)[places] for name in DTYPES}
    assert torch.equal(places, places.unique()) and same(part, replace(data, **chosen))
    assert torch.equal(subsample(data, images, seed).round, part.round)


def test_within_a_class_priority_draws():
    """Of two images of a class, one of 100 times the priority: with α = ½, it is drawn ten times in
    eleven.
    """
    data = make(4, 2)
    data = replace(data, priority=torch.tensor([1.0, 1.0, 0.01, 0.01]) - 1e-3)  # less the floor
    drawn = torch.cat([subsample(data, 2, seed).round for seed in range(2000)])
    assert (drawn < 2).float().mean().item() == pytest.approx(10 / 11, abs=0.015)


def test_a_scarce_class_leaves_its_places_to_others():
    data = make(20, 2)
    data = replace(data, labels=torch.tensor([0] * 18 + [1] * 2))
    part = subsample(data, 10)
    assert part.counts() == [8, 2] and part.manifest["short"] == {"1": 3}
    for images in (0, 21):
        with pytest.raises(EchosetError, match=r"must lie in \[1, 20\]"):
            subsample(data, images)


def test_what_stops_an_export_leaves_nothing_behind(tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("mine")
    with pytest.raises(EchosetError, match="taken is there already"):
        export(make(), tmp_path / "taken")
    (tmp_path / "mount").mkdir()
    place = (tmp_path / "mount").stat().st_ino
    pictures = distill.sets.forms.content.Content.pictures

    def stopped(content):
        yield from list(pictures(content))[:5]
        raise KeyboardInterrupt

    monkeypatch.setattr(distill.sets.forms.content.Content, "pictures", stopped)
    for name in ("out", "mount"):
        with pytest.raises(KeyboardInterrupt):
            export(make(), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mount", "taken"] and not list(
        (tmp_path / "mount").iterdir()
    )
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "mount")
    export(make(), ".", "set")
    assert same(TransferSet.load(tmp_path / "mount", check_hashes=True), make())
    assert (
        tmp_path / "mount"
    ).stat().st_ino == place  # an empty folder may be a mount, or where somebody stands
    (tmp_path / ".out.part").mkdir()  # of one that was killed
    (tmp_path / ".out.part" / "x").write_text("half")
    assert not (export(make(), tmp_path / "out") / "x").exists()


class ByPixel:
    """A task of one decision a pixel, whose labels are masks beside the pictures."""

    label_dtype = torch.int64
    words = Words(unit="pixels", shares=True)

    def group(self, labels, classes):
        return labels.flatten(1).mode(1).values.long()

    def is_balanced(self, counts):
        return True

    def shortfall(self, counts, quotas, images):
        return {label: 1 for label, count in enumerate(counts) if count < 64 * quotas[label] / 2}

    def check_folders(self, counts):
        pass

    def picture_folder(self, label, classes):
        return "images"

    def folder_files(self, label, name):
        return {f"masks/{name}.raw": label.numpy().tobytes()}

    def label_files(self, label):
        return {"mask": label.numpy().tobytes()}


def make_maps():
    """The usual set, every image a map of its class, with one pixel of class 0."""
    data = make(20, 4)
    labels = data.labels[:, None, None].repeat(1, 8, 8).to(torch.uint8)
    labels[:, 0, 0] = 0
    logits = data.logits[:, :, None, None].repeat(1, 1, 8, 8)
    return replace(data, labels=labels, logits=logits)


def test_what_is_written_beside_a_picture_is_the_tasks_own(tmp_path, monkeypatch):
    monkeypatch.setattr(distill.sets.transfer_set, "find_task", lambda name: ByPixel())
    data = make_maps()
    folder = export(data, tmp_path / "folder")
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["images", "masks"]
    assert len(list((folder / "images").iterdir())) == len(list((folder / "masks").iterdir())) == 20
    assert (folder / "masks" / "train-000003.raw").read_bytes() == data.labels[3].numpy().tobytes()
    with tarfile.open(export(data, tmp_path / "tar", "webdataset") / "set-00000.tar") as archive:
        assert archive.getnames()[:3] == ["000000.png", "000000.mask", "000000.npy"]
        assert archive.extractfile("000003.mask").read() == data.labels[3].numpy().tobytes()
    export(data, tmp_path / "set", "set")
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["shards"][0]["counts"] == data.counts() == [335, 315, 315, 315]


def test_a_part_is_drawn_by_the_class_an_image_counts_for(monkeypatch):
    monkeypatch.setattr(distill.sets.transfer_set, "find_task", lambda name: ByPixel())
    part = subsample(make_maps(), 8)
    assert part.groups.bincount().tolist() == [2] * 4 and part.manifest["short"] == {}
