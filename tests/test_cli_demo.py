import contextlib
import io
import json
import shutil

import pytest
import torch
from conftest import SHARD, SHORT, STUDENT, TINY_FLAGS, last_json

from distill import (
    load_classifier,
)
from inversion import MNIST_SLICE
from inversion.cli.main import main

POOL = [
    "--synthesis.replay.keep_all=true",
    "--synthesis.replay.balanced_targets=false",
    "--synthesis.calls=2",
]
"""After TINY_FLAGS, a set of 80 images in two calls: the quickest, where it does not matter."""


def test_demo_prints_its_json_last_and_names_the_report(demo):
    done, out = demo
    document = last_json(done)
    assert {
        "teacher_accuracy",
        "student_accuracy",
        "images",
        "per_class",
        "seconds",
        "report",
    } <= document.keys()
    assert {"synthesis", "distillation", "total"} <= document["seconds"].keys()
    assert document["images"] == 30 and document["per_class"] == [3] * 10
    assert document["teacher_accuracy"] >= 0.993
    assert str(out / "report.html") in done.stdout and (out / "report.html").is_file()
    assert (out / STUDENT).is_file() and (out / "log.jsonl").is_file()
    assert "The nearest to real images" in (out / "report.html").read_text()


@pytest.fixture(scope="module")
def beside(few, tmp_path_factory):
    """A demo with pictures beside its set: its folder, its options, and what it printed."""
    out = tmp_path_factory.mktemp("beside") / "demo"
    flags = [f"--data={few}", *TINY_FLAGS, *SHORT, "--beside.images=20"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        main(["demo", f"--out={out}", "--json", *flags])
    return out, flags, printed.getvalue()


def test_pictures_beside_the_set_teach_too(demo, beside):
    alone = demo[1]
    out, _, printed = beside
    summary = json.loads(printed.splitlines()[-1])
    assert "30 synthetic images and 20 from shaders" in printed
    assert summary["images"] == 30
    assert summary["beside"] == {"images": 20, "sources": ["shaders"], "per_class": [2] * 10}
    assert summary["seconds"]["collection"] > 0
    assert (out / SHARD).read_bytes() == (alone / SHARD).read_bytes()
    assert (out / STUDENT).read_bytes() != (alone / STUDENT).read_bytes()
    page = (out / "report.html").read_text()
    assert "20 images of shaders" in page and "no real image" in page and "<td>collection" in page


def test_distill_with_both_sets_teaches_the_student_of_the_demo(beside, run, tmp_path):
    out = beside[0]
    sets = [f"--set={out / 'set'}", f"--beside={out / 'beside'}"]
    done = run("distill", *sets, f"--out={tmp_path}", "--seed=3", *SHORT)
    assert "50 images of" in done.stdout
    assert (tmp_path / STUDENT).read_bytes() == (out / STUDENT).read_bytes()


def test_a_demo_stopped_before_its_student_goes_on_to_the_same_bytes(beside, run, tmp_path):
    out = shutil.copytree(beside[0], tmp_path / "demo")
    student = (out / STUDENT).read_bytes()
    collected = [out / "beside" / name for name in ("manifest.json", ".job")]
    times = [path.stat().st_mtime_ns for path in collected]
    (out / "summary.json").unlink()
    (out / STUDENT).unlink()
    run("demo", "--quiet", f"--out={out}", *beside[1])
    assert (out / STUDENT).read_bytes() == student
    assert [path.stat().st_mtime_ns for path in collected] == times


def test_a_finished_demo_is_made_anew(demo, beside, run, tmp_path):
    """This time without pictures: the bytes of one that never had any, made by another process."""
    alone = demo[1]
    out = shutil.copytree(beside[0], tmp_path / "demo")
    made = (out / SHARD).stat().st_mtime_ns
    run("demo", "--quiet", f"--out={out}", *beside[1][:-1])
    for name in (STUDENT, SHARD):
        assert (out / name).read_bytes() == (alone / name).read_bytes()
    assert (out / SHARD).stat().st_mtime_ns > made
    assert not (out / "beside").exists()


def test_a_growing_pool_and_real_images_teach_the_student_that_learnt_along(run, few, tmp_path):
    same = [
        "--student=convnet-4",
        "--synthesis.adversary.student.model=convnet-4",
        "--synthesis.adversary.keep=true",
    ]
    beside = ["--beside.images=30", f'--beside.sources=["{few}"]', "--start=adversary"]
    flags = [
        f"--out={tmp_path / 'd'}",
        f"--data={few}",
        *TINY_FLAGS,
        *SHORT,
        *POOL,
        *same,
        *beside,
        "--json",
    ]
    told = last_json(run("demo", *flags))
    assert (
        told["images"] == 80
        and told["beside"]["per_class"] == [3] * 10
        and told["start"] == "adversary"
    )
    page = (tmp_path / "d" / "report.html").read_text()
    assert (
        "30 images of" in page
        and "no real image" not in page
        and "It went on from the adversarial student" in page
    )


def test_what_stands_beside_the_set_is_checked_before_the_work(refused, tmp_path):
    demo = ["demo", f"--out={tmp_path / 'demo'}", *TINY_FLAGS, "--beside.images=20"]
    assert "did you mean shaders?" in refused(*demo, '--beside.sources=["shader"]')
    assert "where this demo writes" in refused(
        *demo, f'--beside.sources=["{tmp_path / "demo" / "set"}"]'
    )
    assert "beside.images must be a number of at least 0, got -1" in refused(
        *demo, "--beside.images=-1", status=2
    )
    adversary = ["--start=adversary", "--synthesis.adversary.keep=true", "--distillation.steps=0"]
    assert "leave beside.images at 0" in refused(*demo, *adversary)
    assert not (tmp_path / "demo").exists()


def test_a_demo_whose_student_starts_from_the_adversarial_one(run, refused, few, tmp_path):
    demo = ["demo", f"--out={tmp_path / 'demo'}", f"--data={few}", *TINY_FLAGS]
    assert "--start adversary" in refused(*demo, "--distillation.steps=0")
    assert "adversary.keep" in refused(*demo, "--start=adversary")
    start = ["--start=adversary", "--synthesis.adversary.keep=true", "--json"]
    assert "be the same" in refused(*demo, *start, "--student=convnet-8")
    assert "shard_images to 30" in refused(*demo, *start, "--synthesis.shard_images=10")

    def networks():
        return [
            load_classifier(tmp_path / "demo" / name)
            for name in (STUDENT, "set/adversary-00000.safetensors")
        ]

    found = last_json(run(*demo, *start, *POOL, "--distillation.steps=0"))
    assert (
        found["student_accuracy"] == found["adversary_accuracy"]
        and found["seconds"]["distillation"] == 0
    )
    student, adversary = networks()
    assert student.weight_hash() == adversary.weight_hash() and found["start"] == "adversary"
    assert (
        "It went on from the adversarial student" in (tmp_path / "demo" / "report.html").read_text()
    )
    inside = refused(*demo, *start, f"--student.weights={tmp_path / 'demo' / STUDENT}")
    assert "where this demo writes and clears away" in inside
    (tmp_path / "demo" / STUDENT).rename(tmp_path / "kept.safetensors")
    assert "two starts" in refused(
        *demo, *start, f"--student.weights={tmp_path / 'kept.safetensors'}"
    )
    # Steps of size 0 leave the adversary's parameters; the statistics of its BatchNorm follow the
    # images.
    run(
        *demo,
        *start,
        *POOL,
        *SHORT,
        "--distillation.optimiser=sgd",
        "--distillation.learning_rate=0",
    )
    for student, adversary in zip(*(network.parameters() for network in networks()), strict=True):
        assert torch.equal(student, adversary)


def test_a_demo_stopped_before_its_report_is_no_finished_one(demo, run, few, tmp_path):
    out = shutil.copytree(demo[1], tmp_path / "demo")
    (out / "report.html").unlink()
    made = {name: (out / name).stat().st_mtime_ns for name in ("set/manifest.json", SHARD)}
    run("demo", f"--out={out}", f"--data={few}", "--quiet", *TINY_FLAGS, *SHORT)
    assert (out / "report.html").is_file() and made == {
        name: (out / name).stat().st_mtime_ns for name in made
    }
    assert not [path for path in out.iterdir() if path.suffix == ".state"]


def test_a_teacher_is_not_written_over(demo, refused):
    student = demo[1] / STUDENT
    before = student.read_bytes()
    inside = refused(
        "demo", f"--out={demo[1]}", f"--teacher={student}", f"--data={MNIST_SLICE}", *TINY_FLAGS
    )
    assert "where this demo writes and clears away" in inside
    over = refused(
        "distill", f"--set={MNIST_SLICE}", f"--teacher={student}", f"--out={demo[1]}", *SHORT
    )
    assert "written over its teacher" in over and student.read_bytes() == before


MISUSED = ("--distillation.batch=1", "--loss=hintn")
"""Told by the options themselves, before any work."""


def test_a_failed_demo_keeps_the_finished_one(demo, refused):
    out, untrained = (
        demo[1],
        ["--teacher=distill.models.zoo.lenet.LeNet5"],
    )  # by import path, it may bring its own weights
    for flags, message in (
        (["--distillation.batch=1"], "batch"),
        (["--loss=hintn"], "no loss 'hintn'"),
        (
            ["--synthesis.replay.sampling=policy", "--synthesis.held_out=0"],
            "learns from held-out images",
        ),
        (["--data=/nowhere"], "no data at /nowhere"),
        (["--synthesis.calls=0"], "calls must be at least 1"),
        (
            ["--synthesis.calls=2", "--images=2000"],
            "make 160 images, and 2,000 are wanted; raise calls to at least 50",
        ),
        (
            ["--synthesis.generator.meta_rate=-1"],
            "generator.meta_rate must be a number of at least 0, got -1",
        ),
        (
            ["--synthesis.generator.learning_rate=.nan"],
            "generator.learning_rate must be a number of at least 0 and finite, got nan",
        ),
        (["--synthesis.adversary.learning_rate=-1"], "adversary.learning_rate must be a number"),
        (
            [*untrained, "--teacher.size=28", "--teacher.channels=1", f"--data={MNIST_SLICE}"],
            "statistics were never trained",
        ),
    ):
        status = 2 if "must be" in message or flags[0] in MISUSED else 1
        assert message in refused("demo", f"--out={out}", *TINY_FLAGS, *flags, status=status)
    assert (out / "report.html").is_file() and (out / "set" / "manifest.json").is_file()


def test_a_demo_keeps_the_state_of_another_work(refused, tmp_path):
    (tmp_path / "student.state").write_bytes(b"hours")
    said = refused("demo", f"--out={tmp_path}", *TINY_FLAGS)
    assert "student.state is there, and no demo has made it" in said
    assert (tmp_path / "student.state").read_bytes() == b"hours"
