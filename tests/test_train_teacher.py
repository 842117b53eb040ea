"""The tool that trains teachers on real images, on a scale of seconds."""

import itertools
import json
import runpy
import signal
import sys
from hashlib import sha256

import numpy as np
import pytest
import torch
import train_teacher
from conftest import ROOT
from PIL import Image
from train_teacher import TeacherRecipe, side_at, train

from distill.data.augment import make_views
from distill.loop import Interrupted
from distill.models import load_classifier
from distill.options import ViewOptions
from synthesis_kernels.errors import EchosetError


def recipe(data, out, **changes):
    """A small network on these images, unless told otherwise."""
    usual = {
        "model": "wrn-10-1",
        "mean": (0.5,),
        "std": (0.25,),
        "epochs": 5,
        "batch": 16,
        "small": 0.6,
        "views": ViewOptions(rotate=0, scale=0, flip=True),
        "device": "cpu",
        "precision": "float32",
    }
    return TeacherRecipe(str(data), str(out), **usual | changes)


def test_a_teacher_learns_and_says_how_it_was_made(stripes, tmp_path, capsys):
    out = tmp_path / "t.safetensors"
    accuracy = train(recipe(stripes, out, epochs=12, half=True))
    assert accuracy > 0.9 and f"{accuracy:.2%} on the test set" in capsys.readouterr().out
    teacher = load_classifier(out)
    notes = teacher.spec.notes
    assert notes["accuracy"] == accuracy and "data" not in notes
    assert (notes["epochs"], notes["small"], notes["seed"]) == (12, 0.6, 0)
    assert all(torch.equal(p, p.half().float()) for p in teacher.network.parameters() if p.ndim > 1)
    assert out.stat().st_size < 0.75 * teacher.parameters_count * 4
    assert not list(tmp_path.glob("*.state"))


def test_teachers_are_listed_by_name_and_replaced(stripes, tmp_path):
    listed = tmp_path / "teachers.json"
    for name, epochs in (("t", 1), ("a", 1), ("t", 2)):
        out = tmp_path / f"{name}.safetensors"
        accuracy = train(recipe(stripes, out, epochs=epochs, record=str(listed)))
    other, entry = json.loads(listed.read_text())["teachers"]
    assert (other["name"], entry["name"]) == ("a", "t")
    assert (entry["accuracy"], entry["recipe"]["epochs"]) == (accuracy, 2)
    assert entry["sha256"] == sha256((tmp_path / "t.safetensors").read_bytes()).hexdigest()


def test_another_data_set_does_not_go_on_where_this_one_stopped_nor_loses_it(
    stripes, tmp_path, monkeypatch
):
    out = tmp_path / "t.safetensors"
    train_until(3, recipe(stripes, out), monkeypatch)
    arrays = dict(np.load(stripes))
    np.savez(tmp_path / "other.npz", **arrays | {"train_labels": 1 - arrays["train_labels"]})
    with pytest.raises(EchosetError, match=r"t\.safetensors\.state was left by a stopped run"):
        train(recipe(tmp_path / "other.npz", out))
    assert (tmp_path / "t.safetensors.state").is_file() and not out.exists()


def test_what_can_not_be_judged_is_refused_before_it_is_trained(stripes, tmp_path, monkeypatch):
    monkeypatch.setattr(train_teacher, "StudentState", None)  # nothing may be trained
    arrays = dict(np.load(stripes))
    wrong = {
        "has labels from 0 to 2": {"test_labels": arrays["test_labels"] + np.arange(32) // 31},
        r"shape \(1, 12, 16\)": {"test_images": arrays["test_images"][:, :12]},
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


@pytest.mark.parametrize("size", [16, "12x20"])
def test_pictures_of_any_size_train_a_teacher_of_one(tmp_path, size):
    for split, count in (("train", 12), ("test", 6)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(
                    0, 256, (10 + number, 20, 3), dtype=np.uint8
                )
                Image.fromarray(pixels).save(tmp_path / split / label / f"{number}.png")
    train(
        recipe(
            tmp_path,
            tmp_path / "t.safetensors",
            epochs=1,
            batch=4,
            size=size,
            channels=1,
            small=0.5,
        )
    )
    spec = load_classifier(tmp_path / "t.safetensors").spec
    assert spec.shape == ((1, 16, 16) if size == 16 else (1, 12, 20))
    assert spec.classes == 2


def test_a_teacher_that_diverged_is_not_saved(stripes, tmp_path):
    with pytest.raises(EchosetError, match="lower the learning rate"):
        train(recipe(stripes, tmp_path / "t.safetensors", learning_rate=1e30))
    assert not list(tmp_path.iterdir())


def test_training_images_are_no_test(stripes, tmp_path):
    arrays = np.load(stripes)
    np.savez(tmp_path / "whole.npz", images=arrays["train_images"], labels=arrays["train_labels"])
    with pytest.raises(EchosetError, match="no test images of its own"):
        train(recipe(tmp_path / "whole.npz", tmp_path / "t.safetensors"))


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
def test_recipes_that_cannot_be_are_refused(stripes, tmp_path, change, said):
    with pytest.raises(EchosetError, match=said):
        train(recipe(stripes, tmp_path / "t.safetensors", **change))


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
def whole(stripes, tmp_path_factory):
    """The bytes of a teacher trained without a stop."""
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    train(recipe(stripes, path))
    return path.read_bytes()


@pytest.mark.parametrize("step", [1, 4, 7, 14])
def test_a_stopped_training_goes_on_to_the_same_bytes(stripes, whole, tmp_path, monkeypatch, step):
    """Within an epoch, at its end, and after the size has changed."""
    out = tmp_path / "stopped.safetensors"
    train_until(step, recipe(stripes, out), monkeypatch)
    with open(f"{out}.state", "rb") as state:
        state.readline()
        assert torch.load(state)["state"]["student"]["step"] == step
    train(recipe(stripes, out))
    assert out.read_bytes() == whole and not list(tmp_path.glob("*.state"))


def test_ctrl_c_on_the_last_step_has_nothing_left_to_stop(stripes, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(train_teacher, "make_views", views_until(20))
    train(recipe(stripes, tmp_path / "done.safetensors"))
    assert (tmp_path / "done.safetensors").read_bytes() == whole


def test_a_stopped_training_says_how_to_go_on(stripes, tmp_path, monkeypatch, capsys):
    out = tmp_path / "t.safetensors"
    words = ["train_teacher.py", f"--data={stripes}", f"--out={out}", "--model=wrn-10-1"]
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
