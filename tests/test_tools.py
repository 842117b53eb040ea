"""The recipe that trains teachers, and the tools that keep figures, on a scale of seconds."""

import itertools
import json
import math
import runpy
import signal
import sys
from argparse import Namespace
from hashlib import sha256
from types import SimpleNamespace

import gpu
import measure
import measure_curve
import measure_reweighting
import measure_sources
import measure_students
import numpy as np
import publish_study
import pytest
import results
import tables
import torch
import train_teacher
from conftest import ROOT
from PIL import Image
from train_teacher import TeacherRecipe, side_at, train
from verbs import plain_endings, run_verb, run_verbs

from distill.data.augment import make_views
from distill.data.images import Images
from distill.loop import Interrupted
from distill.models import ModelSpec, build_classifier, load_classifier
from distill.options import ViewOptions
from inversion.cli.main import main, parse
from synthesis_kernels.backend import describe_device, resolve_device
from synthesis_kernels.errors import EchosetError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two splits of stripes, upright and lying: 64 and 32 of them."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 64), ("test", 32)):
        labels = np.arange(count) % 2
        stripes = np.tile(np.arange(16) // 2 % 2 * 200, (count, 16, 1))
        stripes = np.where(labels[:, None, None] == 1, stripes, stripes.transpose(0, 2, 1))
        noisy = (stripes + random.integers(0, 40, stripes.shape)).astype(np.uint8)[..., None]
        arrays |= {f"{split}_images": noisy, f"{split}_labels": labels}
    path = tmp_path_factory.mktemp("stripes") / "stripes.npz"
    np.savez(path, **arrays)
    return path


def recipe(data, out, **changes):
    views = ViewOptions(rotate=0, scale=0, flip=True)
    settings = {
        "model": "wrn-10-1",
        "mean": (0.5,),
        "std": (0.25,),
        "epochs": 5,
        "batch": 16,
        "small": 0.6,
        "views": views,
    }
    return TeacherRecipe(
        str(data), str(out), **settings | {"device": "cpu", "precision": "float32"} | changes
    )


def test_a_teacher_learns_and_says_how_it_was_made(data, tmp_path, capsys):
    listed = tmp_path / "teachers.json"
    train(
        recipe(data, tmp_path / "t.safetensors", epochs=1, record=str(listed))
    )  # listed, and then replaced
    train(recipe(data, tmp_path / "a.safetensors", epochs=1, record=str(listed)))
    accuracy = train(
        recipe(data, tmp_path / "t.safetensors", epochs=12, half=True, record=str(listed))
    )
    assert accuracy > 0.9
    other, entry = json.loads(listed.read_text())["teachers"]
    assert (other["name"], entry["name"], entry["accuracy"], entry["recipe"]["epochs"]) == (
        "a",
        "t",
        accuracy,
        12,
    )
    assert entry["sha256"] == sha256((tmp_path / "t.safetensors").read_bytes()).hexdigest()
    teacher = load_classifier(tmp_path / "t.safetensors")
    notes = teacher.spec.notes
    assert (notes["accuracy"], notes["epochs"], notes["small"], notes["seed"]) == (
        accuracy,
        12,
        0.6,
        0,
    )
    assert "data" not in notes and f"{accuracy:.2%} on the test set" in capsys.readouterr().out
    assert all(torch.equal(p, p.half().float()) for p in teacher.network.parameters() if p.ndim > 1)
    assert (tmp_path / "t.safetensors").stat().st_size < 0.75 * teacher.parameters_count * 4
    assert not list(tmp_path.glob("*.state"))


def test_another_data_set_does_not_go_on_where_this_one_stopped_nor_loses_it(
    data, tmp_path, monkeypatch
):
    out = tmp_path / "t.safetensors"
    train_until(3, recipe(data, out), monkeypatch)
    arrays = dict(np.load(data))
    np.savez(tmp_path / "other.npz", **arrays | {"train_labels": 1 - arrays["train_labels"]})
    with pytest.raises(EchosetError, match=r"t\.safetensors\.state was left by a stopped run"):
        train(recipe(tmp_path / "other.npz", out))
    assert (tmp_path / "t.safetensors.state").is_file() and not out.exists()


def test_what_can_not_be_judged_is_refused_before_it_is_trained(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_teacher, "StudentState", None)  # nothing may be trained
    arrays = dict(np.load(data))
    wrong = {
        "has labels from 0 to 2": {"test_labels": arrays["test_labels"] + np.arange(32) // 31},
        r"shape \(1, 12, 16\)": {"test_images": arrays["test_images"][:, :12]},
        "give --size": {
            f"{split}_images": arrays[f"{split}_images"][:, :12] for split in ("train", "test")
        },
    }
    for message, changed in wrong.items():
        np.savez(tmp_path / "w.npz", **arrays | changed)
        with pytest.raises(EchosetError, match=message):
            train(recipe(tmp_path / "w.npz", tmp_path / "t.safetensors"))
    np.savez(
        tmp_path / "u.npz",
        **{name: arrays[name] for name in ("train_images", "test_images", "test_labels")},
    )
    with pytest.raises(EchosetError, match="has no labels to learn from"):
        train(recipe(tmp_path / "u.npz", tmp_path / "t.safetensors"))


def test_pictures_of_any_size_train_a_teacher_of_one(tmp_path):
    for split, count in (("train", 12), ("test", 6)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(
                    0, 256, (10 + number, 20, 3), dtype=np.uint8
                )
                Image.fromarray(pixels).save(tmp_path / split / label / f"{number}.png")
    train(recipe(tmp_path, tmp_path / "t.safetensors", epochs=1, batch=4, size=16, channels=1))
    spec = load_classifier(tmp_path / "t.safetensors").spec
    assert (spec.channels, spec.size, spec.classes) == (1, 16, 2)


def test_a_teacher_that_diverged_is_not_saved(data, tmp_path):
    with pytest.raises(EchosetError, match="lower the learning rate"):
        train(recipe(data, tmp_path / "t.safetensors", learning_rate=math.inf))
    assert not list(tmp_path.iterdir())


def test_training_images_are_no_test(data, tmp_path):
    arrays = np.load(data)
    np.savez(tmp_path / "whole.npz", images=arrays["train_images"], labels=arrays["train_labels"])
    with pytest.raises(EchosetError, match="no test images of its own"):
        train(recipe(tmp_path / "whole.npz", tmp_path / "t.safetensors"))


def test_runs_judged_on_other_images_are_not_pooled(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    (tmp_path / "mine.json").write_text(
        json.dumps({"runs": [{"name": "default", "seed": 0}], "test_images": "full test set"})
    )
    with pytest.raises(SystemExit, match="runs judged on full test set"):
        measure.measure("mine", [], [1], None, [])


def demo_document():
    """What `echoset demo` prints, as far as it is kept."""
    found = dict.fromkeys(
        ("teacher_accuracy", "student_accuracy", "adversary_accuracy", "agreement"), 0.9
    )
    found |= {
        "start": "fresh",
        "beside": None,
        "images": 20,
        "per_class": [10, 10],
        "test_images": "a few",
    }
    return found | {
        "device": describe_device(resolve_device()),
        "torch": "2",
        "seconds": {"total": 9.0},
    }


def test_runs_are_kept_beside_those_of_another_process_and_not_made_again(tmp_path, monkeypatch):
    path = tmp_path / "mine.json"
    monkeypatch.setattr(measure, "RESULTS", tmp_path)

    def beside_another_process(*command):
        found = results.read_runs(path)
        other = {"name": "theirs", "seed": len(found["runs"]), "device": demo_document()["device"]}
        results.add_run(path, other, {"test_images": "a few"})
        return demo_document()

    monkeypatch.setattr(measure, "run_verb", beside_another_process)
    flags = ["--images=20"]
    measure.measure("mine", [], [0, 1], None, flags)
    runs = measure.measure("mine", [], [0, 1], None, flags)
    assert [(run["name"], run["seed"]) for run in runs] == [
        ("theirs", 0),
        ("default", 0),
        ("theirs", 2),
        ("default", 1),
    ]
    assert runs[1]["command"] == "echoset demo --seed 0 --images=20" and runs[1]["balanced"]
    with pytest.raises(SystemExit, match="runs of default with other options"):
        measure.measure("mine", [], [2], None, ["--images=30"])


@pytest.mark.parametrize("seed", [0, 1])
def test_runs_of_unknown_options_or_another_device_are_not_pooled(tmp_path, monkeypatch, seed):
    path = tmp_path / "mine.json"
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(measure, "run_verb", lambda *command: demo_document())
    early = {
        "runs": [{"name": "default", "seed": 0}],
        "test_images": "a few",
        "device": "cuda: a GPU",
    }
    path.write_text(json.dumps(early))
    with pytest.raises(SystemExit, match="runs of default with other options"):
        measure.measure("mine", [], [seed], None, [])
    path.write_text(json.dumps(early | {"runs": [{"name": "another", "seed": 0}]}))
    with pytest.raises(SystemExit, match="runs made on cuda: a GPU, and this is"):
        measure.measure("mine", [], [seed], None, [])


@pytest.fixture
def verbs(tmp_path, monkeypatch):
    """Shell scripts in the place of verbs, which find the verb's name in $3; the folder that they
    run in.
    """

    def write(script):
        program = tmp_path / "echoset"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setattr("verbs._stopped", False)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return write


def test_verbs_run_side_by_side_and_answer_in_order(verbs):
    answer = """printf 'said\\n["%s", %s]' $3 $OMP_NUM_THREADS"""
    verbs(f"touch $3; until [ -e one ] && [ -e two ]; do sleep 0.02; done; {answer}")
    assert run_verbs([["one"], ["two"]], processes=2) == [["one", 1], ["two", 1]]


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_stopped_tool_waits_for_what_runs(verbs, capsys, name):
    folder = verbs(
        f"trap 'sleep 0.3; touch kept; exit 130' TERM; kill -{name} $PPID; while :; do sleep "
        "0.02; done"
    )
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as ended, plain_endings():
        run_verbs([["demo"], ["never"]])
    assert ended.value.code == 130 and "the same command goes on" in capsys.readouterr().err
    assert (folder / "kept").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_stop_that_came_too_late_for_one_verb_holds_for_the_next(verbs):
    verbs("trap : TERM; kill -INT $PPID; sleep 0.5; echo '[1]'")
    assert run_verb("demo") == [1]
    with pytest.raises(Interrupted):
        run_verb("demo")


def test_a_verb_that_fails_ends_the_others_first(verbs):
    long = "trap 'sleep 0.3; touch kept; exit 130' TERM; touch ready; while :; do sleep 0.02; done"
    folder = verbs(
        f"if [ $3 = long ]; then {long}; fi; until [ -e ready ]; do sleep 0.02; done; echo why "
        ">&2; exit 1"
    )
    with pytest.raises(SystemExit, match="failed: echoset wrong 'a b'\nwhy"):
        run_verbs([["long"], ["wrong", "a b"]], processes=2)
    assert (folder / "kept").exists()


def test_published_commands_tell_no_places(monkeypatch):
    words = ["--data=/home/me/data", "--set", "data", "--labels", "data", "--out", "a b"]
    monkeypatch.setattr(sys, "argv", ["/home/me/tools/measure_x.py", *words])
    assert results.this_command({"/home/me/data": "DIR", "data": "SET", None: "NONE"}) == (
        "python tools/measure_x.py --data=DIR --set SET --labels data --out 'a b'"
    )
    sets = """'{"real": "/d", "made": "/b/set", "here": "runs/c"}'"""
    assert publish_study.public(
        f"echoset study --sets {sets} --original /d --data=/d --rank 1 --world 2"
    ) == (
        """echoset study --sets '{"real": "DIR", "made": "SET", "here": "runs/c"}' --original DIR --data=DIR"""
    )


def test_a_study_is_published_a_cell_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(publish_study, "RESULTS", tmp_path / "results")
    run = dict.fromkeys(publish_study.KEPT, 0.1234567) | {"device": "a CPU", "torch": "2"}
    (tmp_path / "study.json").write_text(
        json.dumps({"command": "echoset study --data /d", "runs": [run, run], "rows": []})
    )
    assert publish_study.publish(tmp_path / "study.json", "mine") == []
    text = (tmp_path / "results" / "mine.json").read_text()
    found = json.loads(text)
    assert (
        found["command"] == "echoset study --data DIR" and found["study"][1]["accuracy"] == 0.12346
    )
    assert len(text.splitlines()) == 4


def test_every_set_s_command_is_given_each_time(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        measure_sources, "run_verbs", lambda commands, processes=1: given.extend(commands)
    )
    for place in ("0/noise/manifest.json", "score-0/validation.json"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text("{}")
    made = {"noise": ["collect", "--images", "20", "--source", "noise"]}
    assert measure_sources.measure([0], made, "DIR", tmp_path, 1, 10) == [{}]
    assert given[0] == [*made["noise"], "--seed", "0", "--out", str(tmp_path / "0" / "noise")]
    assert [command[0] for command in given] == ["collect", "score"]


def test_rows_of_a_curve_say_where_they_come_from(tmp_path, monkeypatch):
    images, folders = Images(torch.zeros(20, 1, 1, 1).byte(), None, "pictures"), []
    made = SimpleNamespace(images=images.images, manifest={"shards": [{"sha256": "mine"}]})

    def run_study(teacher, sets, test, out, student, options, distillation, **way):
        folders.append(out.as_posix())
        method = options.methods[0]
        cell = {
            "corruption": "none",
            "method": method,
            "seed": 0,
            "loss": {method: 1.0},
            "set_size": options.images,
        }
        cell |= {
            "accuracy": 0.9,
            "agreement": 0.9,
            "steps": distillation.steps,
            "seconds": 1.5,
            "device": "a CPU",
            "torch": "2",
        }
        return [cell | {"set": name, "key": "…"} for name in sets]

    path = tmp_path / "mine.json"
    for name, value in {
        "RESULTS": tmp_path,
        "run_study": run_study,
        "load_images": lambda *given: images,
    }.items():
        monkeypatch.setattr(measure_curve, name, value)
    monkeypatch.setattr(measure_curve, "load_teacher", lambda options: None)
    monkeypatch.setattr(measure_curve, "TransferSet", SimpleNamespace(load=lambda place: made))
    config = str(ROOT / "configs" / "cifar10-small.yaml")
    given = Namespace(
        config=config,
        set="s",
        data="d",
        sizes=[10],
        seeds=[0],
        steps=7,
        name="mine",
        method="hinton",
    )
    for commit, steps in (("first", 7), ("second", 9), ("third", 7)):
        given.steps = steps
        monkeypatch.setattr(measure_curve, "repository_commit", lambda commit=commit: commit)
        monkeypatch.setattr(
            sys, "argv", ["measure_curve.py", "--set", "s", "--data", "d", "--steps", str(steps)]
        )
        measure_curve.measure(given)
    assert folders == [f"runs/curve/mine/hinton-10-{steps}" for steps in (7, 9, 7)]
    rows = json.loads(path.read_text())["study"]
    found = [(row["set"], row["steps"], row["commit"]) for row in rows]
    assert found == [
        ("real", 7, "first"),
        ("real", 9, "second"),
        ("synthetic", 7, "first"),
        ("synthetic", 9, "second"),
    ]
    assert rows[1]["command"] == "python tools/measure_curve.py --set SET --data DIR --steps 9"
    assert (
        rows[2]["set_hashes"] == ["mine"] and "set_hashes" not in rows[0] and "key" not in rows[0]
    )
    given.method = "at"  # another row, though all else is the same
    measure_curve.measure(given)
    assert [row["method"] for row in json.loads(path.read_text())["study"]] == ["at"] * 2 + [
        "hinton"
    ] * 4
    made.manifest["shards"][0]["sha256"] = "another"
    with pytest.raises(EchosetError, match="rows of another synthetic set"):
        measure_curve.measure(given)


def test_a_part_out_of_time_ends_with_what_it_has_started():
    """The second process would hold the output open for a minute."""
    status, output = gpu.run_part(["sh", "-c", "echo begun; sleep 60 & wait"], 3)
    assert status == 124 and output.splitlines() == ["begun", "", "out of time after 3 s"]
    assert gpu.run_part(["sh", "-c", "echo done; exit 3"], 30) == (3, "done\n")


@pytest.mark.parametrize("name", ["gallery", "make_mnist_slice"])
def test_help_is_no_path(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0 and "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("seeds", [["0"], ["0", "0"], ["0", "1", "0"]])
def test_ways_to_draw_need_two_seeds(monkeypatch, capsys, seeds):
    monkeypatch.setattr(
        sys, "argv", ["measure_reweighting.py", "--name=x", "--data=DIR", "--seeds", *seeds]
    )
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "tools" / "measure_reweighting.py"), run_name="__main__")
    assert "no two of them equal" in capsys.readouterr().err


def test_students_of_one_set_are_measured_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(measure_students, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    train(recipe(data, tmp_path / "teacher.safetensors"))
    for name in ("set", "beside"):
        assert (
            main(
                [
                    "collect",
                    f"--out={name}",
                    "--teacher=teacher.safetensors",
                    f"--source={data}",
                    "--images=8",
                    "--quiet",
                ]
            )
            == 0
        )
    asked = ("few", ["set", "beside"], "teacher.safetensors", ["convnet-4"], [0], str(data))
    flags = ["--distillation.steps=2", "--distillation.batch=8", "--distillation.views_per_image=1"]
    (row,) = measure_students.measure(*asked, flags)
    assert (
        0 <= row["student_accuracy"] <= 1
        and row["images"] == 8
        and row["beside"]["per_class"] == [4, 4]
    )
    assert row["steps"] == 2 and row["command"].startswith(
        "echoset distill --set SET --beside BESIDE --teacher teacher"
    )
    (network,) = (tmp_path / "runs" / "students").glob("*/student.safetensors")
    assert (
        row["parameters"] == load_classifier(network).parameters_count
        and len(row["set_hashes"]) == 2
    )
    (tmp_path / "set").rename("moved")
    again = ("few", ["moved", "beside"], *asked[2:])
    assert measure_students.measure(*again, flags) == [row]  # not taught again
    (tmp_path / "results" / "few.json").unlink()  # as if stopped before it was judged
    verbs, run_verb = [], measure_students.run_verb
    with monkeypatch.context() as patch:
        patch.setattr(
            measure_students,
            "run_verb",
            lambda *command: verbs.append(command[0]) or run_verb(*command),
        )
        assert (
            measure_students.measure(*again, flags)[0]["student_accuracy"]
            == row["student_accuracy"]
        )
    assert verbs == ["evaluate"]
    verbs = []
    judged = {"accuracy": 0.5, "agreement": 0.5, "seconds": 1.0}
    monkeypatch.setattr(
        measure_students, "run_verb", lambda *command: verbs.append(command[0]) or judged
    )
    with pytest.raises(EchosetError, match="no model named 'convnet-x'"):
        measure_students.measure(
            "few",
            ["moved"],
            "teacher.safetensors",
            ["convnet-8", "convnet-x"],
            [0],
            str(data),
            flags,
        )
    assert not verbs
    assert len(measure_students.measure(*again, [*flags, "--distillation.temperature=2"])) == 2
    weights = ["--student.weights", "x.pt"]
    runs = measure_students.measure("few", ["moved"], *again[2:], flags)  # by one set alone
    assert len(runs) == 3 and verbs == ["distill", "evaluate"] * 2
    monkeypatch.setattr(
        measure_students,
        "build_student",
        lambda options, like: build_classifier(ModelSpec(options.model)),
    )
    assert [
        row["taught_before"] for row in measure_students.measure(*again, [*flags, *weights])
    ] == [False] * 3 + [True]
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    assert (
        tables.students("few").count("\n| convnet-4") == 4
        and tables.students("few").count("convnet-4, taught before |") == 1
    )


@pytest.mark.parametrize(
    "change, said",
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"batch": 65}, "batch must be at most 64"),
        ({"small": 1.5}, "small must lie in"),
        ({"small": -0.5}, "small must lie in"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"size": 16, "channels": 2}, "channels must be 1 or 3"),
        ({"views": ViewOptions(mixup=0.5)}, "labels stay as they are"),
        ({"views": ViewOptions(cutmix=0.5)}, "labels stay as they are"),
    ],
)
def test_recipes_that_cannot_be_are_refused(data, tmp_path, change, said):
    with pytest.raises(EchosetError, match=said):
        train(recipe(data, tmp_path / "t.safetensors", **change))


def views_until(step):
    """`make_views`, and Ctrl-C while it makes the images of this step."""
    calls = itertools.count(1)

    def make(*arguments):
        if next(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return make_views(*arguments)

    return make


def train_until(step, recipe, monkeypatch):
    """A training that Ctrl-C stops after this step."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="keeps it"):
        patch.setattr(train_teacher, "make_views", views_until(step))
        train(recipe)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The bytes of a teacher trained without a stop."""
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    train(recipe(data, path))
    return path.read_bytes()


@pytest.mark.parametrize("step", [1, 4, 7, 14])
def test_a_stopped_training_goes_on_to_the_same_bytes(data, whole, tmp_path, monkeypatch, step):
    """Within an epoch, at its end, and after the size has changed."""
    out = tmp_path / "stopped.safetensors"
    train_until(step, recipe(data, out), monkeypatch)
    assert torch.load(f"{out}.state")["state"]["student"]["step"] == step
    train(recipe(data, out))
    assert out.read_bytes() == whole and not list(tmp_path.glob("*.state"))


def test_ctrl_c_on_the_last_step_has_nothing_left_to_stop(data, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(train_teacher, "make_views", views_until(20))
    train(recipe(data, tmp_path / "done.safetensors"))
    assert (tmp_path / "done.safetensors").read_bytes() == whole


def test_a_stopped_training_says_how_to_go_on(data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "t.safetensors"
    words = ["train_teacher.py", f"--data={data}", f"--out={out}", "--model=wrn-10-1"]
    monkeypatch.setattr(sys, "argv", [*words, "--batch=16", "--device=cpu"])
    monkeypatch.setattr("distill.data.augment.make_views", views_until(2))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "train_teacher.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 130 and "the same command goes on" in said
    assert f"training stopped; {out}.state keeps it" in said


def test_images_grow_in_four_stages_to_their_full_size():
    sides = [side_at(step / 100, 32, 0.6) for step in range(100)]
    assert sides == [16] * 15 + [20] * 15 + [24] * 15 + [28] * 15 + [32] * 40
    assert side_at(0.0, 32, 0.0) == 32


def test_recipes_are_recipes():
    import jsonargparse

    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(TeacherRecipe, as_group=False)
    files = list((ROOT / "configs" / "teachers").glob("*.yaml"))
    assert files
    for path in files:
        given = parser.parse_string(path.read_text() + "\ndata: d\nout: o\n")
        assert parser.instantiate(given).seed == 0


def test_tables_come_from_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    seconds = {"synthesis": 60.0, "distillation": 120.0, "total": 200.0}
    runs = [
        {"student_accuracy": value, "images": 5000, "seconds": seconds} for value in (0.85, 0.87)
    ]
    (tmp_path / "cifar10-wrn.json").write_text(json.dumps({"runs": runs}))
    (tmp_path / "cifar10-small.json").write_text(
        json.dumps({"runs": [runs[0] | {"beside": {"images": 1500}}]})
    )
    cell = {"set": "real", "method": "hinton", "set_size": 5000, "steps": 900, "agreement": 0.91}
    cells = [cell | {"accuracy": value} for value in (0.9, 0.92)] + [
        cell | {"set_size": 500, "accuracy": 0.7}
    ]
    (tmp_path / "cifar10-curve.json").write_text(json.dumps({"study": cells}))
    teacher = {
        "name": "wrn-40-2",
        "accuracy": 0.94,
        "parameters": 2_243_546,
        "seconds": 5400,
        "device": "a CPU",
    }
    (tmp_path / "teachers.json").write_text(json.dumps({"teachers": [teacher]}))
    readme = "a\n<!-- table: cifar10 -->\n<!-- end -->\nb\n<!-- table: teachers -->\nold\n<!-- end -->\nc\n"
    curve = tables.render("<!-- table: curve -->\n<!-- end -->")
    assert "| real | `hinton` | 5,000 | 900 | 2 | 91.00 ± 1.41 | 91.00 ± 0.00 |\n<!--" in curve
    made = tables.render(readme)
    assert "| `cifar10-wrn` | 5,000 | 2 | 86.00 ± 1.41 | 85.00 | 1.0 | 0.0 | 2.0 | 3.3 |" in made
    assert "curve" not in made and "small" not in made
    assert "| 5,000 + 1,500 | 1 | 85.00 |" in tables.render(
        "<!-- table: cifar10-small -->\n<!-- end -->"
    )
    assert "| wrn-40-2 | 94.00 | 2,243,546 | 90 | a CPU |" in made
    assert (
        "old" not in made
        and "\nb\n" in made
        and made.endswith("c\n")
        and tables.render(made) == made
    )
    student = {
        "name": "wrn-16-1",
        "steps": 2000,
        "parameters": 175_066,
        "images": 5000,
        "beside": None,
    }
    student |= {"seconds": {"distillation": 90.0}}
    judged = [
        student
        | {
            "student_accuracy": value,
            "agreement": value,
            "command": f"echoset distill --seed {seed} --student wrn-16-1",
        }
        for seed, value in enumerate((0.8, 0.82))
    ]
    (tmp_path / "cifar10-students.json").write_text(json.dumps({"runs": judged}))
    row = "| wrn-16-1 | 175,066 | 5,000 | 2,000 | 2 | 81.00 ± 1.41 | 81.00 ± 1.41 | 1.5 |"
    assert row in tables.render("<!-- table: students -->\n<!-- end -->")
    with pytest.raises(SystemExit, match="'nothing'"):
        tables.render("<!-- table: nothing -->\n<!-- end -->")


def test_ways_to_draw_are_options_of_the_demo():
    for name, flags in measure_reweighting.ways([0.5, *[0.0] * 6]).items():
        replay = parse("demo", flags).synthesis.replay
        assert replay.sampling == ("policy" if name == "transferred" else name)
        assert (replay.policy_rate, len(replay.policy)) == (
            (0, 7) if name == "transferred" else (0.1, 0)
        )


def test_differences_have_student_s_interval():
    mean, half = tables.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / math.sqrt(3))
    rows = [
        ("uniform", 0, 0.80),
        ("uniform", 1, 0.82),
        ("priority", 0, 0.81),
        ("priority", 1, 0.84),
    ]
    runs = [
        {
            "name": name,
            "seed": seed,
            "calls": 40 + seed,
            "cross_agreement": value,
            "student_accuracy": value,
            "seconds": {"synthesis": 9.0},
        }
        for name, seed, value in rows
    ]
    table = tables.reweighting(runs)
    assert "| uniform | 81.00 % | -1.50 ± 6.35 | 81.00 % | -1.50 ± 6.35 | 9 | 40, 41 |" in table
    assert "| priority | 82.50 % | – | 82.50 % | – | 9 | 40, 41 |" in table
