"""`echoset collect`, and what other verbs make of its sets."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from collecting import (
    FLAGS,
    PLAIN,
    SCARCE,
    linear_teacher,
    make,
    save_pictures,
)
from conftest import ROOT, environment

from distill import ModelSpec, TransferSet, build_classifier, distill
from distill.evaluation import predict
from distill.options import DistillOptions
from distill.runtime import Runtime
from inversion.cli.main import main, parse
from inversion.cli.verbs import verify
from inversion.options import CollectOptions
from inversion.pages.report import write_report


@pytest.fixture(scope="module")
def linear():
    return linear_teacher()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("pictures") / "some.npz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A set of the bundled teacher, collected without a stop by the command line."""
    out = tmp_path_factory.mktemp("whole") / "set"
    command = [
        sys.executable,
        "-m",
        "inversion.cli.main",
        "collect",
        *FLAGS,
        f"--out={out}",
        "--json",
    ]
    return out, subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=ROOT, check=True
    )


def test_the_last_line_is_the_whole_account(whole):
    out, done = whole
    document = json.loads(done.stdout.strip().splitlines()[-1])
    manifest = json.loads((out / "manifest.json").read_text())
    assert document["images"] == 30
    assert document["per_class"] == [3] * 10
    assert document["set"] == str(out)
    assert all(document[name] == value for name, value in manifest["collection"].items())
    assert "shown as figures on black: 50% of smooth" in done.stdout
    assert "full after" in done.stdout
    assert manifest["method"] == "collect"
    assert manifest["config"]["expose"] == 0.5


def test_verify_and_distill_take_a_collected_set(whole, teacher, capsys):
    out, _ = whole
    assert main(["verify", f"--set={out}", "--teacher=mnist", "--json", "--device=cpu"]) == 0
    verified = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert verified["balanced"]
    assert verified["labels_differ"] == 0
    assert verified["largest_logit_gap"] < 2e-3
    made = TransferSet.load(out, check_hashes=True)
    assert torch.equal(predict(teacher, made.images, torch.device("cpu")).argmax(1), made.labels)
    student = build_classifier(ModelSpec("convnet-4"))
    options = DistillOptions(steps=3, views_per_image=2, batch=16)
    assert (
        distill(student, made, teacher, options, runtime=Runtime(device="cpu", quiet=True)).student
        is student
    )


@pytest.mark.parametrize("ahead, differ", [(1e-6, 0), (3e-4, 1)])
def test_verify_forgives_what_rounding_decides_and_no_more(
    whole, capsys, monkeypatch, ahead, differ
):
    made = TransferSet.load(whole[0])
    answers = made.logits.float()
    label = int(made.labels[0])
    answers[0] = 0.0
    answers[0, label - 1] = ahead
    stored = answers.half()
    monkeypatch.setattr(TransferSet, "load", lambda *_, **__: replace(made, logits=stored))
    ask = verify.ask_to_keep

    def told(network, images, precision):  # of views, which are more, what the network says
        return answers if len(images) == len(answers) else ask(network, images, precision)

    monkeypatch.setattr(verify, "ask_to_keep", told)
    assert (
        main(["verify", f"--set={whole[0]}", "--teacher=mnist", "--json", "--device=cpu"]) == differ
    )
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["labels_differ"] == differ


def test_verify_takes_a_set_that_was_not_meant_to_be_balanced(linear, tmp_path, capsys):
    make(linear, ("noise",), replace(PLAIN, balanced=False), tmp_path / "twin")
    assert main(["verify", f"--set={tmp_path / 'twin'}"]) == 0
    assert "not balanced, nor meant to be" in capsys.readouterr().out
    make(linear, ("noise",), SCARCE, tmp_path / "short")
    assert main(["verify", f"--set={tmp_path / 'short'}"]) == 1
    assert "is not balanced" in capsys.readouterr().err


def test_the_report_says_where_the_images_came_from(linear, pictures, tmp_path):
    result = make(linear, ("noise", pictures), replace(SCARCE, short=("push",)), tmp_path / "set")
    page = write_report(tmp_path / "set").read_text()
    assert "images from noise, " in page
    assert "chosen by one trained network" in page
    assert "Where the images came from" in page
    rows = re.findall(r"<tr><td>3<td>(\d+)<td>(\d+)", page)
    assert (str(result.manifest["collection"]["raw_counts"][3]),) * 2 in rows
    assert "Where the time went" not in page
    assert "synthetic images" not in page
    # A strip a class; and images that stand out, each of them a picture.
    strips, extremes = page.split("The hardest for the teacher", 1)
    assert strips.count("<img") == 4 and "<img" in extremes


def test_words_without_a_flag_are_sources(tmp_path, capsys):
    flags = [
        "--images=20",
        "--collection.draws=60",
        "--collection.expose=0.5",
        f"--out={tmp_path / 'set'}",
        "--device=cpu",
        "--json",
    ]
    assert main(["collect", "noise", "pink", f"--out={tmp_path / 'set'}", *flags]) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["sources"] == [
        "noise",
        "pink",
    ]
    assert main(["collect", "shadrs", f"--out={tmp_path / 'other'}"]) == 1
    assert "did you mean shaders?" in capsys.readouterr().err


def test_a_set_that_stays_short_is_written_and_fails(tmp_path, capsys):
    out = tmp_path / "set"
    flags = [
        "--source",
        "noise",
        "--short",
        "--images=40",
        "--collection.draws=5",
        "--collection.expose=0",
        "--json",
        "--device=cpu",
    ]
    assert main(["collect", f"--out={out}", *flags]) == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out.strip().splitlines()[-1])
    label, lacks = next(iter(document["short"].items()))
    assert f"{out} is written but {document['missing']} images short: " in printed.err
    assert "Traceback" not in printed.err
    assert f"class {label} lacks {lacks}" in printed.err
    assert "further way of filling classes to --short" in printed.err
    made = TransferSet.load(out, check_hashes=True)
    assert len(made) == document["images"] == 40 - document["missing"]


def parsed(*arguments):
    return parse("collect", list(arguments))


def test_lists_are_given_word_by_word():
    for arguments in (
        ["--source", "noise", "leaves:smallest=0.1,cover=0.5", "--json"],
        ["--sources=[noise,'leaves:smallest=0.1,cover=0.5']"],
    ):
        assert parsed(*arguments).sources == ("noise", "leaves:smallest=0.1,cover=0.5")
    assert parsed("--source", "noise", "pink", "--quiet").sources == ("noise", "pink")
    assert parsed("--source=leaves:cover=0.5").sources == ("leaves:cover=0.5",)
    assert parsed("noise", "pink", "--images", "9").sources == ("noise", "pink")
    assert parsed("--source", "noise", "--source", "pink").sources == ("pink",)  # the later wins
    assert parsed().sources == ("shaders",)
    assert parsed().collection == CollectOptions()
    assert parsed("--short", "draw", "mixup", "--json").collection.short == ("draw", "mixup")
    assert parsed("--short").collection.short == parsed("--short", "--quiet").collection.short == ()
    run = parsed(
        "--images=9",
        "--teacher",
        "mnist",
        "--short=augment",
        "--collection.only=[1,3]",
        "--collection.confidence=[0.2,0.8]",
    )
    assert run.collection == CollectOptions(
        images=9, short=("augment",), only=(1, 3), confidence=(0.2, 0.8)
    )


def test_flags_win_over_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "sources: [pink]\nseed: 4\ncollection:\n  images: 7\n  short: [draw]\n"
    )
    run = parsed(f"--config={tmp_path / 'c.yaml'}", "--source", "noise", "--short")
    assert (run.sources, run.seed, run.collection.images, run.collection.short) == (
        ("noise",),
        4,
        7,
        (),
    )
    assert parsed(f"--config={tmp_path / 'c.yaml'}").collection.short == ("draw",)


def test_a_way_that_is_none_ends_with_status_two(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("--short", "draw", "dream")
    assert ended.value.code == 2
    assert "dream" in capsys.readouterr().err
