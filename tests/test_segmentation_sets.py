"""Sets of label maps after they are made: exports, checks, tables, scores and pages."""

import base64
import io
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from alone import train_alone
from conftest import last_json
from PIL import Image
from torch import nn

from distill import Classifier, ModelSpec, TransferSet, export, save_classifier
from distill.data.palette import colours, css_colour, paint, to_indexed_png
from distill.evaluation import predict
from distill.runtime import Runtime
from distill.sets.answering import add_answers
from distill.sets.transfer_set import write_manifest, write_shard
from distill.tasks import find_task, places
from distill.tasks.places import VOID, decide
from inversion import score
from inversion.classes import class_rows
from inversion.cli.verbs.answering import carry_answers, check_answers
from inversion.filling import fill_short
from inversion.options import AnswerOptions
from inversion.pages.gallery import panels
from inversion.pages.judging import judge
from inversion.pages.report import write_report
from inversion.pages.run_sections import outcome
from inversion.pages.student import write_evaluation
from inversion.scoring.answers import margins
from inversion.scoring.measures import coverage
from synthesis_kernels.errors import EchosetError

RUN = Runtime(device="cpu", precision="float32", quiet=True)
SIZE = (16, 24)
NAMES = ("red roof", "grass", "water", "night")
COUNT = 24
TASK = find_task("segmentation")


class Hues(nn.Module):
    """Red, green, blue or dark, pixel by pixel."""

    def __init__(self, channels=3, classes=4):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, classes, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(0.01)
            for channel in range(3):
                self.first[0].weight[channel, channel, 1, 1] = 4.0
                self.first[1].weight[channel] = 1.0
                self.head.weight[channel, channel] = 2.0
            self.head.bias[3] = 3.0
            self.first[1].running_mean.fill_(0.1)
            self.first[1].running_var.fill_(1.5)

    def forward(self, images):
        return self.head(self.first(images).relu())


def patches(count=COUNT, seed=0):
    """Images of six patches of one hue each."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 2, 3), generator=random, dtype=torch.uint8)
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.fixture(scope="module")
def teacher():
    notes = {"class_names": list(NAMES)}
    spec = ModelSpec(
        "test_segmentation_sets.Hues",
        channels=3,
        size=SIZE,
        classes=4,
        task="segmentation",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        notes=notes,
    )
    return Classifier(Hues(), spec).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def weights(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "hues.safetensors"
    save_classifier(teacher, path)
    return path


def write_set(folder, teacher, images, **more):
    """A finished set of these images."""
    folder.mkdir(parents=True)
    logits = teacher(images.float() / 255)
    labels = decide(logits).to(torch.uint8)
    tensors = {
        "images": images,
        "labels": labels,
        "logits": logits.half(),
        "priority": torch.arange(len(images)).float(),
        "round": torch.zeros(len(images), dtype=torch.int32),
    }
    name = "shard-00000-of-00001.safetensors"
    digest = write_shard(folder / name, tensors)
    counts = torch.bincount(labels.flatten().long(), minlength=4).tolist()
    manifest = {
        "teacher": {"model": "hues", "weight_hash": teacher.weight_hash()},
        "input": teacher.input,
        "counts": counts,
        "short": {},
        "shards": [{"file": name, "count": len(images), "sha256": digest, "seconds": 1.0}],
        "config": {},
        "code_version": "0",
        **more,
    }
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def folder(teacher, tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("sets") / "set", teacher, patches())


@pytest.fixture(scope="module")
def data(folder):
    return TransferSet.load(folder)


def same_map(picture, label):
    return picture.mode == "P" and (np.asarray(picture) == label.numpy()).all()


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


def test_a_set_of_maps_at_a_glance(data):
    assert "4 classes of " in repr(data) and "% of the pixels" in repr(data)
    sheet = data.show(rows=2, columns=3)
    assert sheet.mode == "RGB" and sheet.size == (2 * (3 * 26 - 2), 2 * (2 * 34 - 2))
    first = int(data.groups.eq(data.groups.unique()[0]).nonzero()[0])
    below = np.asarray(sheet)[32:64:2, :48:2].transpose(2, 0, 1)
    assert (below == paint(data.labels[first]).numpy()).all()
    assert f'<span style="color: {css_colour(2)}">■</span> 2 (water)' in data._repr_html_()


def test_maps_of_too_many_images_are_refused_and_a_set_is_verified_in_parts(
    folder, teacher, weights, run, monkeypatch
):
    monkeypatch.setattr(places, "MOST_ROWS", 8 * 4 * 4 * SIZE[0] * SIZE[1])
    with pytest.raises(EchosetError, match=r"9 images would take .* about 8 images; give fewer"):
        predict(teacher, patches(9), torch.device("cpu"))
    assert len(predict(teacher, patches(8), torch.device("cpu"))) == 8
    done = run("verify", f"--set={folder}", f"--teacher={weights}", "--trust", "--json")
    assert last_json(done)["labels_differ"] == 0


def test_what_a_filled_set_still_lacks_is_told_in_images_worth(teacher, tmp_path):
    images = patches(12)
    images[:, 2] = (images[:, 2] * 0.55).byte()  # little water
    folder = write_set(tmp_path / "set", teacher, images)
    data = TransferSet.load(folder)
    short = {
        str(label): lack
        for label, lack in TASK.shortfall(data.counts(), [3] * 4, len(data)).items()
    }
    assert short == {"2": 1}
    write_manifest(folder, {**data.manifest, "short": short})
    filled = fill_short(TransferSet.load(folder), teacher, ("mixup",), folder, RUN)
    # Some pixels more, and still less than half of an equal share.
    assert data.counts()[2] < filled.counts()[2] < sum(filled.counts()) / 8
    assert filled.manifest["short"] == {"2": 1}


def test_verify_tells_shares_and_takes_unevenness(folder, data, teacher, weights, run, tmp_path):
    done = run("verify", f"--set={folder}", f"--teacher={weights}", "--trust", "--json")
    shares = [count / sum(data.counts()) for count in data.counts()]
    assert f"{min(shares):.1%} to {max(shares):.1%} of the pixels" in done.stdout
    rows = [line for line in done.stdout.splitlines() if "2 (water)" in line]
    assert f"{shares[2]:.1%}" in rows[0]
    assert last_json(done)["labels_differ"] == 0

    dark = torch.zeros_like(patches(20))
    write_set(tmp_path / "dark", teacher, torch.cat([data.images[:4], dark]))
    done = run("verify", f"--set={tmp_path / 'dark'}", "--json")
    assert not last_json(done)["balanced"] and "some classes have less than half" in done.stdout


def test_answers_to_views_are_none_unless_asked_for_and_never_many(folder, teacher, tmp_path):
    asked = SimpleNamespace(answers=AnswerOptions())
    kept = TransferSet.load(folder)
    assert carry_answers(asked, kept, teacher, folder) is kept
    check_answers(AnswerOptions(per_image=2), teacher, 100)
    with pytest.raises(EchosetError, match=r"16 views of 100,000 images .* 4.6 GiB.*--answers 3"):
        check_answers(AnswerOptions(per_image=16), teacher, 100_000)
    made = write_set(tmp_path / "set", teacher, patches(4))
    carried = add_answers(made, teacher, 2, runtime=RUN)
    assert carried.answers.tensor.shape == (4, 2, 4, *SIZE)
    out = export(TransferSet.load(made), tmp_path / "views", views=2)
    label = Image.open(out / "labels" / "train-000003-01.png")
    assert same_map(label, carried.answers.tensor[3, 1].argmax(0))


def test_a_set_of_maps_is_scored_by_its_pixels(folder, data, teacher, weights, run, tmp_path):
    card = score(data.images, teacher, "own", runtime=RUN)
    # Where two classes are as likely, the set has what float16 makes of it.
    assert card.counts == pytest.approx(data.counts(), abs=5)
    assert card.values["coverage"] == pytest.approx(coverage(torch.tensor(card.counts)))
    assert card.values["coverage_raw"] == card.values["coverage"]
    logits = teacher(data.images.float() / 255)
    rows = logits.movedim(1, -1).flatten(0, 2)
    assert card.values["margin"] == pytest.approx(margins(rows).mean().item(), abs=1e-5)
    chances = rows.double().softmax(1)
    surprise = -(chances * chances.clamp_min(1e-30).log()).sum(1).mean() / np.log(4)
    balance = card.values["soft_balance"]
    assert card.values["mutual_information"] == pytest.approx(balance - surprise.item(), abs=1e-5)
    left_out = ("boundary_distance", "steadiness", "neighbour", "readout", "readout_gain")
    assert all(card.values[name] is None for name in left_out)
    assert card.values["bn_gap"] is not None and card.values["vendi"] > 1
    assert any("left out" in note for note in card.notes)

    page = tmp_path / "scores.html"
    run("score", f"hues={folder}", f"--teacher={weights}", "--trust", f"--out={page}")
    assert "pixels per class" in page.read_text() and "left out" in page.read_text()


def test_a_report_shows_pictures_and_maps_in_one_palette(folder, data, tmp_path):
    page = write_report(folder, tmp_path / "report.html").read_text()
    assert "of the pixels for each of 4 classes" in page and "share of pixels (%)" in page
    assert f'<i style="background: {css_colour(2)}"></i>2 (water)' in page
    label = int(data.groups.unique()[0])
    places = np.flatnonzero(data.groups.numpy() == label)
    strip = Image.open(io.BytesIO(base64.b64decode(page.partition("base64,")[2].split('"')[0])))
    below = np.asarray(strip.convert("RGB"))[16:32, :24].transpose(2, 0, 1)
    assert (below == paint(data.labels[places[0]]).numpy()).all()


def test_judged_maps_stand_beside_labels_and_teacher(data, teacher, tmp_path):
    truth = data.labels.long()
    truth[:, :2] = VOID
    own = truth.clamp_min(0).flip(2)
    document = judge(data.images, truth, own, 4, data.labels, class_names=NAMES, task=teacher.task)
    known = truth >= 0
    assert sum(document["counts"]) == int(known.sum())
    assert sum(count for *_, count in document["pairs"]) == int((own != truth)[known].sum())
    first = document["samples"][0]
    assert first["right"] == pytest.approx(float((own == truth)[0][known[0]].float().mean()))
    png = np.asarray(Image.open(io.BytesIO(base64.b64decode(first["png"]))))
    parts = [png[:, start : start + 24].transpose(2, 0, 1) for start in range(0, 112, 28)]
    expected = [data.images[0], *paint(torch.stack([truth[0], data.labels[0].long(), own[0]]))]
    for part, wanted in zip(parts, expected, strict=True):
        assert (part == wanted.numpy()).all()
    write_evaluation("lead", [("", "x")], document, "command", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "labels (black: none), teacher&#39;s map, student&#39;s map" in page
    assert "<th>pixels" in page and f"background: {css_colour(3)}" in page


def test_images_of_many_classes_or_one_channel_are_shown_too(data, tmp_path):
    grey = data.images[:4, :1]
    assert panels(list(grey.numpy()), list(paint(data.labels[:4]).numpy()))
    assert class_rows([[30, 10]], None, shares=True) == [("0", "75.0%"), ("1", "25.0%")]
    assert class_rows([[1] * 50], None, shares=True)[0] == ("all 50", "100.0%")


@pytest.mark.slow
def test_a_set_of_maps_is_made_taught_and_judged_by_the_command_line(weights, run, tmp_path):
    network = ["--teacher", weights, "--trust", "--device=cpu", "--precision=float32"]
    small = ["--synthesis.calls=3", "--synthesis.batch=16", "--synthesis.generator.inner_steps=2"]
    small += ["--synthesis.generator.width=8", "--synthesis.adversary.steps=2"]
    student = "--student.model=test_segmentation_sets.Hues"
    small += ["--synthesis.adversary.student.model=test_segmentation_sets.Hues"]
    out = tmp_path / "set"
    done = run("synthesize", *network, "--images=8", *small, f"--out={out}", "--json")
    assert "share of pixels" in done.stdout and "2 (water)" in done.stdout
    assert last_json(done)["complete"] and TransferSet.load(out).answers is None
    done = run("collect", *network, "--source=shaders", "--images=12", f"--out={tmp_path / 'c'}")
    assert "share of pixels in the set" in done.stdout
    taught = tmp_path / "student"
    flags = ["--distillation.steps=4", "--distillation.batch=8", f"--out={taught}"]
    run("distill", *network, f"--set={tmp_path / 'c'}", student, *flags)
    run("report", taught)
    page = (taught / "report.html").read_text()
    assert "From left to right: image, teacher&#39;s map, student&#39;s map" in page


def test_a_demo_tells_the_tasks_own_figures_first():
    summary = {
        "agreement": 0.5,
        "teacher_accuracy": 0.9,
        "student_accuracy": 0.8,
        "teacher_parameters": 1,
        "student_parameters": 1,
        "test_images": "frames",
        "own": {"mean_iou": [0.5, 0.25], "iou": [[0.5, None], [0.25, None]]},
    }
    rows = outcome(summary).rows
    assert rows[1] == ("mean IoU", "0.5000", "0.2500") and rows[2][0] == "accuracy"
    assert len(rows) == 5
