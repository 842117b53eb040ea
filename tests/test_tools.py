"""The recipe that trains teachers, and the tools that keep figures, on a scale of seconds."""

import json
import math
import sys
from hashlib import sha256

import numpy as np
import pytest
import torch
from conftest import ROOT

from distill.models import load_classifier
from distill.options import ViewOptions
from inversion.cli import _parse, main
from synthesis_kernels.errors import EchosetError

sys.path.insert(0, str(ROOT / "tools"))
import measure
import measure_reweighting
import measure_students
import tables
import train_teacher
from train_teacher import TeacherRecipe, resize, side_at, train


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
    settings = {"model": "wrn-10-1", "mean": (0.5,), "std": (0.25,), "epochs": 5, "batch": 16, "small": 0.6, "views": views}
    return TeacherRecipe(str(data), str(out), **settings | {"device": "cpu", "precision": "float32"} | changes)


def test_a_teacher_learns_and_says_how_it_was_made(data, tmp_path, capsys):
    listed = tmp_path / "teachers.json"
    train(recipe(data, tmp_path / "t.safetensors", epochs=1, record=str(listed)))  # listed, and then replaced
    train(recipe(data, tmp_path / "a.safetensors", epochs=1, record=str(listed)))
    accuracy = train(recipe(data, tmp_path / "t.safetensors", epochs=12, half=True, record=str(listed)))
    assert accuracy > 0.9
    other, entry = json.loads(listed.read_text())["teachers"]
    assert (other["name"], entry["name"], entry["accuracy"], entry["recipe"]["epochs"]) == ("a", "t", accuracy, 12)
    assert entry["sha256"] == sha256((tmp_path / "t.safetensors").read_bytes()).hexdigest()
    teacher = load_classifier(tmp_path / "t.safetensors")
    notes = teacher.spec.notes
    assert (notes["accuracy"], notes["epochs"], notes["small"], notes["seed"]) == (accuracy, 12, 0.6, 0)
    assert "data" not in notes and f"{accuracy:.2%} on the test set" in capsys.readouterr().out
    assert all(torch.equal(p, p.half().float()) for p in teacher.network.parameters() if p.ndim > 1)
    assert (tmp_path / "t.safetensors").stat().st_size < 0.75 * teacher.parameters_count * 4
    assert not list(tmp_path.glob("*.state"))


def test_another_data_set_does_not_go_on_where_this_one_stopped_nor_loses_it(data, tmp_path, monkeypatch):
    out = tmp_path / "t.safetensors"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        StopsAfter.looks = 3
        patch.setattr(train_teacher, "StopFlag", StopsAfter)
        train(recipe(data, out))
    arrays = dict(np.load(data))
    np.savez(tmp_path / "other.npz", **arrays | {"train_labels": 1 - arrays["train_labels"]})
    with pytest.raises(EchosetError, match=r"t\.safetensors\.state was left by a stopped run"):
        train(recipe(tmp_path / "other.npz", out))
    assert (tmp_path / "t.safetensors.state").is_file() and not out.exists()


def test_training_images_are_no_test(data, tmp_path):
    arrays = np.load(data)
    np.savez(tmp_path / "whole.npz", images=arrays["train_images"], labels=arrays["train_labels"])
    with pytest.raises(SystemExit, match="no test images of its own"):
        train(recipe(tmp_path / "whole.npz", tmp_path / "t.safetensors"))


def test_runs_judged_on_other_images_are_not_pooled(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    (tmp_path / "mine.json").write_text(json.dumps({"runs": [{"name": "default", "seed": 0}], "test_images": "full test set"}))
    with pytest.raises(SystemExit, match="runs judged on full test set"):
        measure.measure("mine", [], [1], None, [])


def test_students_of_one_set_are_measured_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(measure_students, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    train(recipe(data, tmp_path / "teacher.safetensors"))
    for name in ("set", "beside"):
        assert main(["collect", f"--out={name}", "--teacher=teacher.safetensors", f"--source={data}", "--images=8", "--quiet"]) == 0
    asked = ("few", ["set", "beside"], "teacher.safetensors", ["convnet-4"], [0], str(data))
    flags = ["--distillation.steps=2", "--distillation.batch=8", "--distillation.views_per_image=1"]
    (row,) = measure_students.measure(*asked, flags)
    assert 0 <= row["student_accuracy"] <= 1 and row["images"] == 8 and row["beside"]["per_class"] == [4, 4]
    assert row["steps"] == 2 and row["command"].startswith("echoset distill --set set --beside beside --teacher teacher")
    assert measure_students.measure(*asked, flags) == [row]  # not taught again
    monkeypatch.setattr(measure_students, "teach", lambda *given: row)
    assert len(measure_students.measure(*asked, [*flags, "--distillation.temperature=4"])) == 2


@pytest.mark.parametrize("change", [{"batch": 65}, {"small": 1.5}, {"small": -0.5}, {"epochs": 0}])
def test_recipes_that_cannot_be_are_refused(data, tmp_path, change):
    with pytest.raises(SystemExit, match="batch in"):
        train(recipe(data, tmp_path / "t.safetensors", **change))


class StopsAfter(train_teacher.StopFlag):
    """Ctrl-C after so many looks at the flag."""

    looks = 0

    @property
    def raised(self):
        StopsAfter.looks -= 1
        return StopsAfter.looks < 0

    @raised.setter
    def raised(self, value):
        pass


@pytest.mark.parametrize("looks", [0, 3, 6, 13])  # within an epoch, at its end, after the size has changed
def test_a_stopped_training_goes_on_to_the_same_bytes(data, tmp_path, monkeypatch, looks):
    train(recipe(data, tmp_path / "whole.safetensors"))
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="keeps them"):
        StopsAfter.looks = looks
        patch.setattr(train_teacher, "StopFlag", StopsAfter)
        train(recipe(data, tmp_path / "stopped.safetensors"))
    assert (tmp_path / "stopped.safetensors.state").exists()
    train(recipe(data, tmp_path / "stopped.safetensors"))
    assert (tmp_path / "stopped.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_images_grow_in_four_stages_to_their_full_size():
    sides = [side_at(step / 100, 32, 0.6) for step in range(100)]
    assert sides == [16] * 15 + [20] * 15 + [24] * 15 + [28] * 15 + [32] * 40
    assert side_at(0.0, 32, 0.0) == 32
    images = torch.full((3, 1, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(resize(images, 8), images[:, :, :8, :8])


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
    runs = [{"student_accuracy": value, "images": 5000, "seconds": seconds} for value in (0.85, 0.87)]
    (tmp_path / "cifar10-wrn.json").write_text(json.dumps({"runs": runs}))
    (tmp_path / "cifar10-small.json").write_text(json.dumps({"runs": [runs[0] | {"beside": {"images": 1500}}]}))
    cell = {"set": "real", "set_size": 5000, "steps": 900, "agreement": 0.91}
    cells = [cell | {"accuracy": value} for value in (0.9, 0.92)] + [cell | {"set_size": 500, "accuracy": 0.7}]
    (tmp_path / "cifar10-curve.json").write_text(json.dumps({"study": cells}))
    teacher = {"name": "wrn-40-2", "accuracy": 0.94, "parameters": 2_243_546, "seconds": 5400, "device": "a CPU"}
    (tmp_path / "teachers.json").write_text(json.dumps({"teachers": [teacher]}))
    readme = "a\n<!-- table: cifar10 -->\n<!-- end -->\nb\n<!-- table: teachers -->\nold\n<!-- end -->\nc\n"
    assert "| real | 5,000 | 900 | 2 | 91.00 ± 1.41 | 91.00 ± 0.00 |\n<!--" in tables.render("<!-- table: curve -->\n<!-- end -->")
    made = tables.render(readme)
    assert "| `cifar10-wrn` | 5,000 | 2 | 86.00 ± 1.41 | 85.00 | 1.0 | 0.0 | 2.0 | 3.3 |" in made
    assert "curve" not in made and "small" not in made
    assert "| 5,000 + 1,500 | 1 | 85.00 |" in tables.render("<!-- table: cifar10-small -->\n<!-- end -->")
    assert "| wrn-40-2 | 94.00 | 2,243,546 | 90 | a CPU |" in made
    assert "old" not in made and "\nb\n" in made and made.endswith("c\n") and tables.render(made) == made
    student = {"name": "wrn-16-1", "steps": 2000, "parameters": 175_066, "images": 5000, "beside": None}
    judged = [student | {"student_accuracy": value, "agreement": value, "seconds": {"distillation": 90.0}} for value in (0.8, 0.82)]
    (tmp_path / "cifar10-students.json").write_text(json.dumps({"runs": judged}))
    row = "| wrn-16-1 | 175,066 | 5,000 | 2,000 | 2 | 81.00 ± 1.41 | 81.00 ± 1.41 | 1.5 |"
    assert row in tables.render("<!-- table: students -->\n<!-- end -->")
    with pytest.raises(SystemExit, match="'nothing'"):
        tables.render("<!-- table: nothing -->\n<!-- end -->")


def test_ways_to_draw_are_options_of_the_demo():
    for name, flags in measure_reweighting.ways([0.5, *[0.0] * 6]).items():
        replay = _parse("demo", flags).synthesis.replay
        assert replay.sampling == ("policy" if name == "transferred" else name)
        assert (replay.policy_rate, len(replay.policy)) == ((0, 7) if name == "transferred" else (0.1, 0))


def test_differences_have_student_s_interval():
    mean, half = tables.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / math.sqrt(3))
    rows = [("uniform", 0, 0.80), ("uniform", 1, 0.82), ("priority", 0, 0.81), ("priority", 1, 0.84)]
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
