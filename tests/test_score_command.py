"""`echoset score`."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import last_json
from drawings import dots_in, pictures_of, words_in

from distill import Classifier, load_images
from distill.sets.shards import write_shard
from distill.sets.transfer_set import write_manifest
from inversion import MNIST_SLICE
from inversion.cli.main import main, parse
from inversion.scoring import measures
from inversion.scoring.scores import SCORES
from synthesis_kernels.errors import EchosetError


@pytest.fixture(scope="module")
def few():
    return load_images(MNIST_SLICE).chosen(torch.arange(240))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, teacher, few):
    """Four sets: digits, few kinds of digits, digits twice, and a transfer set that says what was
    drawn.
    """
    place = tmp_path_factory.mktemp("sets")
    sets = {
        "digits": few.images[:60],
        "few": few.images[few.labels < 4][:60],
        "twice": few.images[:30].repeat(2, 1, 1, 1),
    }
    for name, images in sets.items():
        np.savez(place / f"{name}.npz", images=images[:, 0].numpy())
    write_set(place / "made" / "set", teacher, few.images[60:120], list(range(10)))
    return place


def write_set(place, teacher, images, raw_counts):
    place.mkdir(parents=True)
    logits = teacher(images.float() / 255).half()
    labels = logits.argmax(1)
    zero = torch.zeros(len(images))
    tensors = {
        "images": images,
        "labels": labels,
        "logits": logits,
        "priority": zero,
        "round": zero.int(),
    }
    name = "shard-00000-of-00001.safetensors"
    entry = {"file": name, "count": len(images), "sha256": write_shard(place / name, tensors)}
    manifest = {
        "teacher": {"model": "convnet-32", "weight_hash": teacher.weight_hash()},
        "input": teacher.contract,
        "counts": torch.bincount(labels, minlength=10).tolist(),
        "shards": [entry],
        "config": {},
        "code_version": "0",
        "collection": {"raw_counts": raw_counts},
    }
    write_manifest(place, manifest)


def test_sets_are_scored_side_by_side(echoset, folder, tmp_path):
    page = tmp_path / "score.html"
    done = echoset(
        "score",
        folder / "made/set",
        f"kinds={folder / 'few.npz'}",
        folder / "twice.npz",
        "--out",
        page,
        "--json",
    )
    result = last_json(done)
    assert set(result["ranked"]) == set(result["sets"]) == {"made-set", "kinds", "twice"}
    overall = [result["sets"][name]["overall"] for name in result["ranked"]]
    assert overall == sorted(overall, reverse=True)
    assert result["sets"]["made-set"]["values"]["coverage_raw"] == pytest.approx(
        measures.coverage(torch.arange(10))
    )
    assert result["sets"]["twice"]["values"]["duplicates"] == 1
    assert result["sets"]["kinds"]["values"]["coverage"] < 0.7
    assert {one["name"] for one in result["definitions"]} == set(result["sets"]["kinds"]["values"])
    assert "class coverage η ↑" in done.stdout
    assert "made-set" in done.stdout
    text = page.read_text()
    assert text.count("data:image/png;base64") > 15
    assert "margin p₁ − p₂" in text
    assert "before filtering" in text
    assert not re.search(r"(src|href)=.?(https?:|/|\.)|<script", text)
    assert "What the scores are" in text


def test_validation_is_one_command_shared_and_continued(folder, tmp_path, capsys):
    sets = [str(folder / f"{name}.npz") for name in ("digits", "few", "twice")] + [
        str(folder / "made" / "set")
    ]
    flags = [
        "--distillation.steps=3",
        "--distillation.views_per_image=2",
        "--student=convnet-4",
        "--seeds=[4]",
    ]
    common = [
        "score",
        "--validate",
        *sets,
        *flags,
        f"--out={tmp_path / 'v.html'}",
        "--quiet",
        "--json",
    ]
    data = load_images(MNIST_SLICE).chosen(torch.arange(100))
    np.savez(tmp_path / "t.npz", images=data.images[:, 0].numpy(), labels=data.labels.numpy())
    common.append(f"--data={tmp_path / 't.npz'}")
    assert main([*common, "--rank=0", "--world=2"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"complete": False}
    assert main([*common, "--rank=1", "--world=2"]) == 0
    document = json.loads((tmp_path / "v" / "validation.json").read_text())
    result = document["validation"]
    assert len(document["study"]) == 4
    assert {"command", "device", "torch", "sets"} <= document.keys()
    assert len(result["sets"]) == 4
    assert all(one["seeds"] == 1 for one in result["sets"].values())
    assert {row["name"] for row in result["scores"]} == {one.name for one in SCORES}
    assert "only 4 sets" in result["caution"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "v" / "cells").glob("[!.]*")}
    assert len(times) == 4
    assert main(common) == 0
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    text = (tmp_path / "v.html").read_text()
    assert "Do the scores predict?" in text
    plot = pictures_of(text)[0]
    assert "rank by test accuracy" in plot
    assert len(dots_in(plot)) == 4
    assert {"digits", "few", "twice", "made-set"} <= set(words_in(plot))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "there is nothing to score; name sets"),
        (["/nowhere"], "no data at /nowhere"),
        (
            ["--validate", "a=tests", "b=docs"],
            "validation needs 4 sets at least, and better 8, got 2",
        ),
    ],
)
def test_mistakes_name_the_fix(arguments, message, capsys):
    assert main(["score", *arguments, "--quiet"]) == 1
    assert message in capsys.readouterr().err


def test_another_teacher_s_set_and_damaged_counts_are_refused(
    folder, teacher, few, tmp_path, capsys
):
    other = Classifier(teacher.network, replace(teacher.spec, mean=(0.5,)))
    write_set(tmp_path / "other", other, few.images[:20], [1] * 10)
    assert main(["score", str(tmp_path / "other"), "--teacher=mnist", "--quiet"]) == 1
    assert "made with another mean of the teacher" in capsys.readouterr().err
    with pytest.raises(EchosetError, match=r"'collection.raw_counts' is not what it should be"):
        write_set(tmp_path / "damaged", teacher, few.images[:20], [1, 2])


def test_sets_are_named_on_the_command_line(capsys):
    run = parse("score", ["--seed", "3", "--validate", "a/set", "n=b/x.npz", "c/y.npz", "--json"])
    assert run.sets == {"a-set": "a/set", "n": "b/x.npz", "y": "c/y.npz"}
    assert run.seed == 3
    assert run.validate
    assert run.json
    with pytest.raises(SystemExit) as stopped:
        parse("score", ["n=a", "n=b"])
    assert stopped.value.code == 2
    assert "NAME=b" in capsys.readouterr().err


def test_the_page_should_end_in_html(tmp_path, capsys):
    assert main(["score", str(tmp_path), "--out", str(tmp_path / "page")]) == 1
    assert "should end in .html" in capsys.readouterr().err
