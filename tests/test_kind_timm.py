"""Networks of timm, without a network."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from distill import ModelSpec, build_classifier, load_classifier, save_classifier
from distill.models.frozen import Frozen, find_batch_norms
from distill.models.kinds import kind_of
from distill.torchvision_shim import torchvision  # noqa: F401  # before timm, which imports it
from inversion import TeacherOptions, inspect_teacher, load_teacher
from synthesis_kernels.errors import EchosetError

timm = pytest.importorskip("timm", reason="needs timm, the extra timm")

NAME = "timm:test_resnet"


@pytest.fixture
def weights(tmp_path):
    """A checkpoint as a training script with DataParallel leaves it."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet")
    for layer in find_batch_norms(network).values():  # as if trained
        layer.running_mean.uniform_(-0.2, 0.2)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "net.pt")
    return str(tmp_path / "net.pt"), network.eval()


def test_what_timm_knows_is_taken_over(weights):
    file, network = weights
    teacher = load_teacher(TeacherOptions(NAME, file))
    known = timm.get_pretrained_cfg("test_resnet")
    assert teacher.contract == {
        "channels": 3,
        "size": known.input_size[-1],
        "classes": 1000,
        "task": "classification",
        "mean": list(known.mean),
        "std": list(known.std),
    }
    images = torch.rand(2, 3, 160, 160)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (known.mean, known.std))
    torch.testing.assert_close(teacher(images), network((images - mean) / std))
    assert inspect_teacher(teacher).layers


def test_the_user_s_options_win(weights):
    options = TeacherOptions(NAME, weights[0], size=64, mean=(0.1,), std=(0.2,))
    spec = load_teacher(options).spec
    assert (spec.size, spec.mean, spec.std) == (64, (0.1,), (0.2,))
    with pytest.raises(EchosetError, match=r"do not fit the model; wrong shape: .*\(1000,"):
        load_teacher(replace(options, classes=7))


@pytest.mark.parametrize("words", [("classes", "size"), ("num_classes", "img_size")])
def test_a_default_value_can_be_said_as_an_argument(tmp_path, words):
    """Ten classes at 32 pixels are the options' defaults: said nowhere else, they say nothing."""
    network = timm.create_model("test_vit", num_classes=10, img_size=32)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    arguments = dict(zip(words, (10, 32), strict=True))
    teacher = load_teacher(TeacherOptions("timm:test_vit", str(tmp_path / "net.pt"), arguments))
    assert (teacher.spec.classes, teacher.spec.size) == (10, 32)
    assert teacher(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_one_channel():
    model = build_classifier(ModelSpec(NAME, channels=1, size=32, classes=3)).eval()
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 3)


def test_its_activations_in_one_with_the_norm_are_tapped():
    spec = ModelSpec("timm:test_efficientnet", channels=3, size=32, classes=3)
    model = build_classifier(spec).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(
        Frozen(model).with_moments(images)[0], model(images), rtol=1e-4, atol=1e-4
    )


def test_a_student_of_timm_comes_back_from_its_file(tmp_path):
    model = build_classifier(ModelSpec(NAME, channels=3, size=32, classes=4), 3)
    assert (
        build_classifier(ModelSpec(NAME, channels=3, size=32, classes=4), 3).weight_hash()
        == model.weight_hash()
    )
    save_classifier(model, tmp_path / "student.safetensors")
    again = load_classifier(tmp_path / "student.safetensors")
    assert again.spec == model.spec and again.weight_hash() == model.weight_hash()
    teacher = load_teacher(TeacherOptions(str(tmp_path / "student.safetensors")))
    assert teacher.spec == model.spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "timm:hf-hub:somebody/net"}, "timm has no network named"),
        ({"arguments": {"checkpoint_path": "x.pt"}}, "takes no argument checkpoint_path"),
        ({"arguments": {"pretrained": True}}, "takes no argument pretrained"),
    ],
)
def test_a_file_cannot_make_timm_fetch_anything(tmp_path, changes, message):
    spec = {"model": NAME, "channels": 3, "mean": [0.0], "std": [1.0]} | changes
    file = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(1)}, file, {"echoset": json.dumps(spec)})
    with pytest.raises(EchosetError, match=message):
        load_classifier(file)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnt18", "Did you mean .*timm:resnet18"),
        ("timm:resnet18.nobody", "it has .*resnet18.a1_in1k"),
    ],
)
def test_names_that_lead_nowhere_say_why(name, message):
    with pytest.raises(EchosetError, match=message):
        load_teacher(TeacherOptions(name))


def test_networks_of_timm_take_images_that_are_no_squares():
    name = "timm:vit_base_patch16_sapiens2"
    assert kind_of(name).contract(name, {}, None)["size"] == (1024, 768)
    given = ModelSpec("timm:test_vit", channels=3, size=(96, 64), classes=3)
    build_classifier(given).check_forward()
    named = kind_of("timm:test_vit").contract("timm:test_vit", {"img_size": [96, 64]}, None)
    assert named["size"] == given.size


def test_without_timm_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EchosetError, match=r"pip install 'echoset\[timm\]'"):
        load_teacher(TeacherOptions(NAME))
    with pytest.raises(EchosetError, match="Did you mean resnet18"):  # the others need no timm
        build_classifier(ModelSpec("resnt18"))


def test_published_weights_are_timm_s(monkeypatch):
    torch.manual_seed(0)
    published = timm.create_model("test_resnet")
    monkeypatch.setattr(timm, "create_model", fetching(timm.create_model, lambda: published))
    teacher = load_teacher(TeacherOptions(NAME))
    assert all(
        torch.equal(value, published.state_dict()[name])
        for name, value in teacher.network.state_dict().items()
    )
    assert not teacher.training


def test_a_hub_that_does_not_answer_is_said_with_the_remedy(monkeypatch):
    def fail():
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", fetching(timm.create_model, fail))
    with pytest.raises(EchosetError) as error:
        load_teacher(TeacherOptions(NAME))
    for part in (
        "no network",
        "Name or service not known",
        "--teacher.weights FILE",
        "timm/test_resnet.r160_in1k",
    ):
        assert part in str(error.value)


def fetching(create, fetch):
    """timm's `create_model`, which gets published weights from `fetch`."""

    def create_model(name, pretrained=False, **arguments):
        return fetch() if pretrained else create(name, **arguments)

    return create_model
