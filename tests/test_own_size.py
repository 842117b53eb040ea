"""Answers for each pixel, kept at the size at which a network computes them."""

import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from alone import train_alone
from conftest import last_json
from torch import nn

from distill import (
    Classifier,
    DistillOptions,
    ModelSpec,
    TransferSet,
    build_classifier,
    distill,
    export,
    merge,
)
from distill.models.classifier import spec_of
from distill.models.frozen import Frozen, find_batch_norms
from distill.options import ViewOptions
from distill.runtime import Runtime
from distill.sets import keeping
from distill.sets.answering import add_answers, require_budget
from distill.tasks import places
from distill.tasks.places import decide, enlarge
from distill.torchvision_shim import torchvision
from distill.views import ask, ask_to_keep, bank_answers, kept_shape
from inversion import CollectOptions, TeacherOptions, collect, load_teacher
from inversion.pages.report import write_report
from synthesis_kernels.errors import EchosetError

SIZE = (16, 24)
RUN = Runtime(device="cpu", precision="float32", quiet=True)


class Coarse(nn.Module):
    """Decides at a quarter of the size, and enlarges that in one way or another."""

    def __init__(self, way, aligned=False, classes=4):
        super().__init__()
        self.way = way
        self.limit = 0.0
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, classes, 1)
        self.upsample = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=aligned)

    def forward(self, images):
        logits = self.head(self.stem(images))
        if self.way == "not":
            return logits
        whole = self.upsample(logits)
        if self.way == "beside":
            side = F.interpolate(2 * logits, images.shape[2:], mode="bilinear")
            return {"aux": side, "out": whole, "more": F.interpolate(logits, scale_factor=2)}
        if self.way == "clamped" and whole.abs().amax() > self.limit:
            return whole.clamp(-self.limit, self.limit)
        if self.way == "chances":
            return whole.softmax(1)
        return whole


def coarse(way="last", aligned=False, classes=4):
    torch.manual_seed(0)
    spec = ModelSpec("coarse", channels=3, size=SIZE, classes=classes, task="segmentation")
    teacher = Classifier(Coarse(way, aligned, classes), spec)
    for layer in find_batch_norms(teacher.network).values():
        layer.running_mean.uniform_(-0.2, 0.2)
        layer.running_var.uniform_(0.2, 0.5)
    teacher.eval().check_forward()
    return teacher.requires_grad_(False)


def images(count=12):
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8)


def student_of(data):
    torch.manual_seed(0)
    return build_classifier(replace(spec_of(data.manifest["input"]), model="unet-1"))


@pytest.fixture(scope="module")
def teacher():
    return coarse()


@pytest.fixture(scope="module")
def folder(teacher, tmp_path_factory):
    """A finished set of noise."""
    return make_set(teacher, tmp_path_factory.mktemp("sets") / "set")


def make_set(teacher, out, count=12):
    options = CollectOptions(images=count, balanced=False, shard_images=5)
    collect(teacher, ("noise",), options, out, runtime=RUN)
    return out


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("way", ["last", "not", "beside"])
def test_answers_are_kept_small_and_enlarged_to_what_they_were(way, frozen, precision):
    network = coarse(way)
    assert kept_shape(network) == (4, 4, 6)
    asked = Frozen(network, precision) if frozen else network
    shown = torch.rand(9, 3, *SIZE)
    kept = ask_to_keep(asked, shown, precision)
    whole = ask(asked, shown, precision)
    assert kept.shape == (9, 4, 4, 6) and kept.dtype is whole.dtype is torch.float32
    near = 0 if precision is torch.float32 else 0.02
    torch.testing.assert_close(enlarge(kept, SIZE), whole, rtol=near, atol=near)


@pytest.mark.parametrize("way, aligned", [("chances", False), ("last", True)])
def test_what_can_not_be_taken_back_is_kept_whole(way, aligned):
    network = coarse(way, aligned)
    shown = torch.rand(2, 3, *SIZE)
    assert kept_shape(network) == (4, *SIZE)
    kept = ask_to_keep(network, shown, torch.float32)
    assert torch.equal(kept, ask(network, shown, torch.float32))


def test_torchvision_s_networks_answer_at_an_eighth():
    network = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    )
    spec = ModelSpec("lraspp", channels=3, size=(32, 48), classes=4, task="segmentation")
    teacher = Classifier(network, spec).eval()
    teacher.check_forward()
    assert kept_shape(teacher) == (4, 4, 6)


def test_one_decision_an_image_is_kept_as_it_is():
    digits = load_teacher()
    shown = torch.rand(5, 1, 28, 28)
    assert kept_shape(digits) == (10,)
    kept = ask_to_keep(digits, shown, torch.float32)
    assert torch.equal(kept, ask(digits, shown, torch.float32))


def test_a_set_keeps_small_answers_and_gives_whole_ones(folder, teacher):
    data = TransferSet.load(folder)
    assert data.logits.shape == (12, 4, 4, 6) and data.has_logits
    whole = ask(teacher, data.images.float() / 255, torch.float32)
    torch.testing.assert_close(data.logits_of(slice(None)), whole, rtol=1e-3, atol=1e-3)
    assert torch.equal(decide(whole), data.labels.long())
    assert torch.equal(data[3].logits, data.logits_of(torch.tensor([3]))[0])
    again = merge([data, data])
    assert torch.equal(again.logits, torch.cat([data.logits, data.logits]))


def test_labels_that_the_answers_do_not_prefer_are_refused(folder, tmp_path):
    data = TransferSet.load(folder)
    data.labels[7, 5, 5] = (data.labels[7, 5, 5] + 1) % 4
    out = export(data, tmp_path / "out", form="set")
    with pytest.raises(EchosetError, match="some labels are not the classes their stored logits"):
        TransferSet.load(out)


def test_a_student_learns_the_same_of_small_answers_as_of_whole_ones(folder, teacher, monkeypatch):
    data = TransferSet.load(folder)
    options = DistillOptions(steps=6, batch=4, views_per_image=2)
    small = distill(student_of(data), data, teacher, options, runtime=RUN)
    monkeypatch.setattr("distill.views.ask_to_keep", ask)
    whole = distill(student_of(data), data, teacher, options, runtime=RUN)
    for one, other in zip(small.student.parameters(), whole.student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_answers_to_views_take_the_space_of_small_ones(teacher, tmp_path):
    views = ViewOptions()
    (bank,) = bank_answers(teacher, images(), 3, views, 0, torch.float32, quiet=True)
    assert bank.shape == (12, 3, 4, 4, 6)
    require_budget(teacher, keeping.MOST // (2 * 4 * 4 * 6), 1)
    with pytest.raises(EchosetError, match="classes at each of 4 × 6 places"):
        require_budget(teacher, keeping.MOST // (2 * 4 * 4 * 6) + 1, 1)
    made = make_set(teacher, tmp_path / "set")
    data = add_answers(made, teacher, 2, runtime=RUN)
    assert data.answers.tensor.shape == (12, 2, 4, 4, 6)
    options = DistillOptions(steps=4, views_per_image=2)
    alone = distill(student_of(data), data, None, options, runtime=RUN)
    assert alone.student(torch.rand(2, 3, *SIZE)).isfinite().all()
    out = export(data, tmp_path / "npz", form="npz")
    student = tmp_path / "student.pt"
    train_alone(out, "--steps=2", f"--out={student}")
    assert student.is_file()
    shown = export(data, tmp_path / "shown", views=2)
    with np.load(shown / "answers.npz") as file:
        assert file["logits"].shape == (24, 4, 4, 6)


def test_a_set_of_too_many_answers_keeps_none_and_all_else_works(
    teacher, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(keeping, "MOST", 2 * 4 * 4 * 6 * 12 - 1)
    folder = make_set(teacher, tmp_path / "set")
    data = TransferSet.load(folder)
    assert data.logits.shape == (12, 4, 0, 0) and not data.has_logits and data.classes == 4
    assert data[0].logits.shape == (4, 0, 0)
    page = write_report(folder).read_text()
    assert "The most alike" in page and "The hardest" not in page and "Balance and conf" not in page
    assert last_json(run("verify", f"--set={folder}", "--json"))["images"] == 12
    distilled = distill(
        student_of(data), data, teacher, DistillOptions(steps=2, batch=4), runtime=RUN
    )
    assert distilled.student(torch.rand(2, 3, *SIZE)).isfinite().all()
    assert not (export(data, tmp_path / "folder") / "answers.npz").exists()
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "answers.npz" not in card and "It has labels alone, and no answers" in card
    assert "`set.npz` | images, labels, for NumPy" in card
    archive = export(data, tmp_path / "web", form="webdataset") / "set-00000.tar"
    assert "logits" not in (tmp_path / "web" / "README.md").read_text()
    with tarfile.open(archive) as tar:
        assert {name.split(".", 1)[1] for name in tar.getnames()} == {"png", "seg.png"}
    with np.load(tmp_path / "web" / "set.npz") as file:
        assert "logits" not in file.files and file["labels"].shape == (12, *SIZE)
    with pytest.raises(
        AssertionError, match="has no answers; the set's maker gets them with --ans"
    ):
        train_alone(tmp_path / "web", "--steps=2")
    assert TransferSet.load(export(data, tmp_path / "again", form="set")).images.shape[0] == 12


def test_sets_that_keep_answers_otherwise_are_merged_without(
    folder, teacher, tmp_path, monkeypatch
):
    monkeypatch.setattr(keeping, "MOST", 0)
    other = make_set(teacher, tmp_path / "set")
    both = merge([TransferSet.load(folder), TransferSet.load(other)])
    assert len(both) == 24 and not both.has_logits


def test_two_classes_of_strong_logits_are_read_again(tmp_path):
    network = coarse(classes=2)
    with torch.no_grad():
        network.network.head.weight.mul_(60)
        network.network.head.weight[1] = -network.network.head.weight[0]
        network.network.head.bias.zero_()
    data = TransferSet.load(make_set(network, tmp_path / "set", 100))
    assert data.logits.shape == (100, 2, 4, 6) and data.logits.abs().amax() > 10


@pytest.mark.parametrize("limit", [0.3, 3.0])
def test_a_network_that_changes_what_it_enlarged_is_kept_whole(limit, tmp_path):
    network = coarse("clamped")
    network.network.limit = limit
    data = TransferSet.load(make_set(network, tmp_path / "set"))
    is_small = limit > data.logits.abs().amax()
    assert data.logits.shape[2:] == ((4, 6) if is_small else SIZE)
    shown = [torch.full((9, 3, *SIZE), 0.5), torch.rand(9, 3, *SIZE)]
    kept = ask_to_keep(network, torch.cat(shown), torch.float32)
    assert torch.equal(enlarge(kept, SIZE), ask(network, torch.cat(shown), torch.float32))
    pool = torch.cat([torch.full((500, 3, *SIZE), 127, dtype=torch.uint8), images(20)])
    (bank,) = bank_answers(network, pool, 1, ViewOptions(), 0, torch.float32, quiet=True)
    assert bank.shape[:2] == (520, 1) and bank.isfinite().all()


def test_sets_of_two_sizes_are_merged_at_the_images_size(folder, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "kept_shape", lambda network: network.answer_shape)
    older = TransferSet.load(make_set(teacher, tmp_path / "set"))
    assert older.logits.shape == (12, 4, *SIZE)
    newer = TransferSet.load(folder)
    both = merge([older, newer])
    assert torch.equal(both.logits[:12], older.logits)
    torch.testing.assert_close(
        both.logits_of(slice(12, 24)), newer.logits_of(slice(None)), atol=1e-2, rtol=1e-2
    )


def test_exported_programs_are_heard_too(tmp_path):
    network = coarse().network
    batch = torch.export.Dim("batch")
    given = torch.export.export(network, (torch.rand(2, 3, *SIZE),), dynamic_shapes=({0: batch},))
    torch.export.save(given, tmp_path / "net.pt2")
    options = TeacherOptions(
        str(tmp_path / "net.pt2"), channels=3, size="16x24", classes=4, task="segmentation"
    )
    assert kept_shape(load_teacher(options, trust=True)) == (4, 4, 6)


def test_large_maps_are_looked_at_a_few_at_a_time():
    assert [part.stop for part in places.in_parts(10, (21, 512, 512))] == [3, 6, 9, 10]
    assert [part.stop for part in places.in_parts(10, (4, 8, 8))] == [10]
    assert [part.stop for part in places.in_parts(2, (2**25,))] == [1, 2]
