"""Where a network's name leads."""

import subprocess
import sys
from importlib import import_module

import pytest
import torch

from distill import ModelSpec, build_classifier
from distill.models import kinds
from distill.models.kinds import zoo
from distill.models.kinds.kind import Kind
from inversion import TeacherOptions, load_teacher
from synthesis_kernels.errors import EchosetError


@pytest.mark.parametrize(
    ("name", "kind", "runs_user_code"),
    [
        ("wrn-40-2", "zoo", False),
        ("cifar-resnet18", "zoo", False),
        ("resnet18", "torchvision", False),
        ("timm:resnet18", "timm", False),
        ("my_package.nets.Net", "import_path", True),
        ("my_package.nets:Net", "import_path", True),
        ("net.pt2", "exported", True),
        ("net.ts", "torchscript", True),
    ],
)
def test_a_name_leads_to_one_kind(name, kind, runs_user_code):
    found = kinds.kind_of(name)
    assert found is import_module(f"distill.models.kinds.{kind}").KIND
    assert found.runs_user_code is found.comes_trained is runs_user_code


@pytest.mark.parametrize("name", ["wrn-40", "wrn-40-2x", "lenet5-3", "convnet-", "xlenet5"])
def test_a_name_of_almost_the_zoo_s_form_is_none_of_it(name):
    assert not zoo.takes(name)


def test_what_is_known_is_read_off_the_table():
    with pytest.raises(EchosetError) as error:
        kinds.kind_of("nothing")
    for family in zoo.FAMILIES:
        assert family.form in str(error.value)
    assert "an import path such as" in str(error.value)


@pytest.mark.parametrize("name", ["runs/student.pt", "net.pth", "folder/net"])
def test_a_file_is_no_network(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EchosetError, match=f"no model file at {name}"):
        kinds.kind_of(name)
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(EchosetError, match="is a file, not a network"):
        kinds.kind_of(name)


def test_a_file_of_any_ending_is_no_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("# Notes")
    with pytest.raises(EchosetError, match=r"'notes\.md' is a file, not a network"):
        kinds.kind_of("notes.md")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("net.py", "is a file of Python: say net:NAME"),
        ("nets/net.py:Net", "say net:Net, .* and put nets on PYTHONPATH"),
        ("nets", "'nets' is a folder: .* or hf:nets where save_pretrained"),
        ("./nets", "'./nets' is a folder"),
    ],
)
def test_a_folder_and_a_file_of_python_are_called_so(tmp_path, monkeypatch, name, said):
    (tmp_path / "nets").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EchosetError, match=said):
        kinds.kind_of(name)


def test_the_zoo_needs_no_torchvision():
    code = (
        "import sys; from distill import ModelSpec, build_classifier;"
        "build_classifier(ModelSpec('convnet-4'));"
        "assert not {'torchvision', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def told(name, arguments, weights):
    return {"channels": 1, "size": 16, "classes": arguments.get("classes", 3), "mean": (0.5,)}


@pytest.fixture
def publisher(monkeypatch):
    """A kind whose names know their images, and where trained weights are."""
    weights = build_classifier(ModelSpec("convnet-4", classes=3), 7).network.state_dict()
    kind = Kind(
        form="published",
        takes=lambda name: name == "published",
        constructor=lambda name: zoo.constructor("convnet-4"),
        contract=told,
        weights=lambda name, arguments, asked: weights,
    )
    monkeypatch.setattr(kinds, "all_kinds", lambda: iter([kind]))
    return weights


def test_a_kind_completes_what_was_left_at_its_default(publisher):
    teacher = load_teacher(TeacherOptions("published"))
    assert teacher.contract == {
        "channels": 1,
        "size": 16,
        "classes": 3,
        "task": "classification",
        "mean": [0.5],
        "std": [1.0],
    }
    assert all(
        torch.equal(value, publisher[name]) for name, value in teacher.network.state_dict().items()
    )
    teacher = load_teacher(TeacherOptions("published", size=20, mean=(0.25,)))
    assert (teacher.spec.size, teacher.spec.mean) == (20, (0.25,))


def test_published_weights_of_other_classes_are_refused(publisher):
    with pytest.raises(EchosetError, match=r"published weights of published do not fit.*head"):
        load_teacher(TeacherOptions("published", classes=4))


def test_untrained_is_left_untrained(publisher):
    teacher = load_teacher(TeacherOptions("published"), untrained=True)
    assert not torch.equal(teacher.network.state_dict()["head.weight"], publisher["head.weight"])
