"""The tool that teaches several students from one set, on a scale of seconds."""

import measure_students
import pytest
import tables
from conftest import ROOT
from train_teacher import TeacherRecipe, train

from distill.models import ModelSpec, build_classifier, load_classifier
from inversion.cli.main import main
from synthesis_kernels.errors import EchosetError

STEPS = "--distillation.steps=2"
FLAGS = [STEPS, "--distillation.batch=8", "--distillation.views_per_image=1"]


@pytest.fixture
def students(stripes, tmp_path, monkeypatch):
    """Measure students of a teacher's two sets, or of others that are given."""
    monkeypatch.setattr(measure_students, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    contract = {"model": "wrn-10-1", "mean": (0.5,), "std": (0.25,)}
    train(TeacherRecipe(str(stripes), "teacher.safetensors", epochs=1, batch=16, **contract))
    for name in ("set", "beside"):
        words = ["collect", f"--out={name}", "--teacher=teacher.safetensors", "--images=8"]
        assert main([*words, f"--source={stripes}", "--quiet"]) == 0

    def measured(sets=("set", "beside"), names=("convnet-4",), flags=()):
        return measure_students.measure(
            "few",
            list(sets),
            "teacher.safetensors",
            list(names),
            [0],
            str(stripes),
            [*FLAGS, *flags],
        )

    return measured


@pytest.fixture
def asked(monkeypatch):
    """Verbs that students were measured by."""
    names = []
    run_verb = measure_students.run_verb

    def noted(*command):
        names.append(command[0])
        return run_verb(*command)

    monkeypatch.setattr(measure_students, "run_verb", noted)
    return names


@pytest.fixture
def pretended(monkeypatch):
    """Verbs that students are measured by, and that do nothing."""
    names = []
    judged = {"accuracy": 0.5, "agreement": 0.5, "seconds": 1.0}

    def answer(*command):
        names.append(command[0])
        return judged

    monkeypatch.setattr(measure_students, "run_verb", answer)
    return names


def test_students_of_one_set_are_measured_once(students, asked, tmp_path):
    (row,) = students()
    assert asked == ["distill", "evaluate"]
    assert 0 <= row["student_accuracy"] <= 1 and row["steps"] == 2
    assert row["images"] == 8 and row["beside"]["per_class"] == [4, 4]
    command = "echoset distill --set SET --beside BESIDE --teacher teacher"
    assert row["command"].startswith(command)
    (network,) = (tmp_path / "runs" / "students").glob("*/student.safetensors")
    assert row["parameters"] == load_classifier(network).parameters_count
    assert len(row["set_hashes"]) == 2
    (tmp_path / "set").rename("moved")
    assert students(("moved", "beside")) == [row]
    # As if stopped before it was judged.
    (tmp_path / "results" / "few.json").unlink()
    (again,) = students(("moved", "beside"))
    assert again["student_accuracy"] == row["student_accuracy"]
    assert asked == ["distill", "evaluate", "evaluate"]


def test_a_wrong_student_is_told_before_any_is_taught(students, pretended):
    with pytest.raises(EchosetError, match="no model named 'convnet-x'"):
        students(names=("convnet-8", "convnet-x"))
    assert not pretended


def test_other_options_sets_and_weights_are_other_students(students, pretended, monkeypatch):
    students()
    assert len(students(flags=["--distillation.temperature=2"])) == 2
    assert len(students(sets=["set"])) == 3
    assert pretended == ["distill", "evaluate"] * 3
    monkeypatch.setattr(
        measure_students,
        "build_student",
        lambda options, like: build_classifier(ModelSpec(options.model)),
    )
    rows = students(flags=["--student.weights", "x.pt"])
    assert [row["taught_before"] for row in rows] == [False] * 3 + [True]
    table = tables.students("few")
    assert table.count("\n| convnet-4") == 4
    assert table.count("convnet-4, taught before |") == 1
