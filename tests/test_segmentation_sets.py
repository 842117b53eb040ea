"""Sets of label maps after they are made: checks, tables, scores and pages."""

import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import last_json
from hues import NAMES, SIZE, hues_teacher, patches, same_map, write_set
from PIL import Image

from distill import TransferSet, export, save_classifier
from distill.data.palette import css_colour, paint
from distill.evaluation import predict
from distill.runtime import Runtime
from distill.sets.answering import add_answers
from distill.sets.transfer_set import write_manifest
from distill.tasks import find_task, places
from distill.tasks.places import VOID
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
TASK = find_task("segmentation")


@pytest.fixture(scope="module")
def teacher():
    return hues_teacher()


@pytest.fixture(scope="module")
def weights(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "hues.safetensors"
    save_classifier(teacher, path)
    return path


@pytest.fixture(scope="module")
def folder(teacher, tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("sets") / "set", teacher, patches())


@pytest.fixture(scope="module")
def data(folder):
    return TransferSet.load(folder)


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
    small = ["--preset=none", "--synthesis.calls=3", "--synthesis.batch=16"]
    small += ["--synthesis.generator.inner_steps=2"]
    small += ["--synthesis.generator.width=8", "--synthesis.adversary.steps=2"]
    student = "--student.model=hues.Hues"
    small += ["--synthesis.adversary.student.model=hues.Hues"]
    out = tmp_path / "set"
    small += ["--images=16", f"--out={out}"]
    said = run("synthesize", *network, *small, "--short", status=1).stderr
    assert re.search(r"in images' worth of pixels, class 0 \(red roof\) lacks \d", said)
    assert re.search(r"is written but \d of 16 images short", said)
    done = run("synthesize", *network, *small, "--json")
    assert re.search(r"\d images of short classes were made by (augment|mixup)", done.stderr)
    assert "share of pixels" in done.stdout and "2 (water)" in done.stdout
    assert last_json(done)["images"] == len(TransferSet.load(out)) == 16
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
