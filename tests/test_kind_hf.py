"""Image classifiers of Hugging Face, without a network."""

import json
import sys

import pytest
import torch

import distill.torchvision_shim  # noqa: F401  # before transformers, which imports torchvision
from distill import ModelSpec, build_classifier
from distill.models.frozen import find_batch_norms
from inversion import TeacherOptions, load_teacher
from synthesis_kernels.errors import EchosetError


@pytest.fixture
def folder(tmp_path):
    """A tiny ResNet as `save_pretrained` leaves it, with how its images are prepared."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, the extra hf")
    torch.manual_seed(0)
    configuration = transformers.ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 1],
        layer_type="basic",
        id2label={0: "cat", 1: "dog", 2: "bird"},
        label2id={"cat": 0, "dog": 1, "bird": 2},
    )
    network = transformers.ResNetForImageClassification(configuration)
    for layer in find_batch_norms(network).values():  # as if trained
        layer.running_mean.uniform_(-0.2, 0.2)
    network.save_pretrained(tmp_path / "net")
    transformers.ConvNextImageProcessor(
        size={"shortest_edge": 32}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1]
    ).save_pretrained(tmp_path / "net")
    return tmp_path / "net", network.eval()


def test_a_folder_tells_classes_and_how_images_are_prepared(folder):
    path, network = folder
    teacher = load_teacher(TeacherOptions(f"hf:{path}"))
    expected = {
        "channels": 3,
        "size": 32,
        "classes": 3,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.1],
    }
    assert teacher.contract | expected == teacher.contract
    assert teacher.spec.notes["class_names"] == ["cat", "dog", "bird"]
    assert len(find_batch_norms(teacher.network)) == len(find_batch_norms(network)) > 0
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher.network(images).logits, network(images).logits)


def test_the_user_s_options_win(folder):
    path, _ = folder
    spec = load_teacher(TeacherOptions(f"hf:{path}", size=64, mean=(0.1,))).spec
    assert (spec.size, spec.mean) == (64, (0.1,))


def test_a_folder_may_tell_height_and_width(folder):
    path, _ = folder
    file = path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": {"height": 24, "width": 40}, "do_normalize": False}))
    teacher = load_teacher(TeacherOptions(f"hf:{path}"))
    teacher.check_forward()
    assert teacher.spec.shape == (3, 24, 40)


def test_a_student_of_its_architecture_is_built_for_any_classes(folder):
    path, _ = folder
    model = build_classifier(ModelSpec(f"hf:{path}", channels=1, size=32, classes=5))
    assert model.eval().network(torch.rand(2, 1, 32, 32)).logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:./no/such/folder", r"no folder at \./no/such/folder"),
        ("hf:no/such/name/anywhere", "could not be read.*download it beforehand"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_to_do(folder, name, message):
    with pytest.raises(EchosetError, match=message):
        load_teacher(TeacherOptions(name))


def test_without_transformers_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EchosetError, match=r"pip install 'echoset\[hf\]'"):
        load_teacher(TeacherOptions("hf:microsoft/resnet-18"))


def test_a_set_finds_the_folder_from_anywhere(folder, monkeypatch):
    path, _ = folder
    monkeypatch.chdir(path.parent)
    teacher = load_teacher(TeacherOptions(f"hf:./{path.name}"))
    assert teacher.named["model"] == f"hf:{path.resolve()}"
