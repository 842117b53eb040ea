"""Torchvision's weights by their names, without a network."""

import json
from urllib.error import URLError

import pytest
import torch

from distill import ModelSpec, build_classifier
from distill.models.frozen import find_batch_norms
from distill.models.kinds import torchvision as kind
from distill.torchvision_shim import torchvision
from inversion import TeacherOptions, load_teacher
from synthesis_kernels.errors import EchosetError

NAME = "shufflenet_v2_x0_5"
RECORD = torchvision.models.get_model_weights(NAME).DEFAULT


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch.hub's folder, with the file that a download would leave there; and its network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    network = torchvision.models.get_model(NAME, weights=None)
    for layer in find_batch_norms(network).values():  # as if trained
        layer.running_mean.uniform_(-0.2, 0.2)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / RECORD.url.rpartition("/")[2])
    return folder, network.eval()


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1"])
def test_weights_by_name_tell_all_that_is_known_of_them(cache, weights):
    teacher = load_teacher(TeacherOptions(NAME, weights))
    expected = {
        "channels": 3,
        "size": 224,
        "classes": 1000,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert teacher.contract | expected == teacher.contract
    assert teacher.spec.notes["class_names"][:2] == ["tench", "goldfish"]
    images = torch.rand(2, 3, 224, 224)
    answers = cache[1](RECORD.transforms()(images))
    torch.testing.assert_close(teacher(images), answers, rtol=1e-4, atol=1e-4)


def test_the_user_s_options_win(cache):
    spec = load_teacher(TeacherOptions(NAME, "DEFAULT", size=64, mean=(0.5,))).spec
    assert (spec.size, spec.mean, spec.std) == (64, (0.5,), (0.229, 0.224, 0.225))


def test_inspect_says_whose_weights_they_are(cache, run):
    done = run(
        "inspect", "--teacher", NAME, "--teacher.weights=DEFAULT", "--teacher.size=64", "--json"
    )
    notes = json.loads(done.stdout.splitlines()[-1])["spec"]["notes"]
    assert "IMAGENET1K_V1" in notes["weights"] and len(notes["class_names"]) == 1000
    assert "tench, goldfish" in done.stdout and "toilet tissue" not in done.stdout.split("{")[0]


def test_a_file_of_one_s_own_still_is_one(tmp_path):
    network = build_classifier(ModelSpec(NAME, channels=3, size=32, classes=5), 7).network
    torch.save(network.state_dict(), tmp_path / "DEFAULT.pth")
    options = TeacherOptions(NAME, str(tmp_path / "DEFAULT.pth"), classes=5)
    teacher = load_teacher(options)
    assert (teacher.spec.size, teacher.spec.classes, teacher.spec.mean) == (32, 5, (0.0,))


def test_without_a_network_the_message_says_what_to_download(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*arguments, **settings):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(EchosetError) as error:
        load_teacher(TeacherOptions(NAME, "DEFAULT"))
    for part in ("Name or service not known", RECORD.url, str(tmp_path), "--teacher.weights FILE"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, "never trained.*--teacher.weights FILE.*--teacher.weights DEFAULT"),
        (
            "IMAGENET1K_V9",
            "no published weights named 'IMAGENET1K_V9'; it has DEFAULT, IMAGENET1K_V1",
        ),
        ("net.pth", "no weights file at net.pth"),
    ],
)
def test_other_weights_say_why(weights, message):
    with pytest.raises(EchosetError, match=message):
        load_teacher(TeacherOptions(NAME, weights))


@pytest.mark.parametrize("name", kind.names())
def test_all_published_weights_are_described(name):
    for weights in kind.weight_names(name):
        known = kind.contract(name, {}, weights)
        classes = 21 if "task" in known else 1000
        assert known["size"] >= 224 and known["classes"] == classes, weights
        assert len(known["mean"]) == len(known["std"]) == 3


@pytest.mark.parametrize(
    ("name", "weights"), [("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"), ("googlenet", "DEFAULT")]
)
def test_what_torchvision_sets_for_its_weights_is_set(name, weights):
    known = kind.contract(name, {}, weights)
    expected = {"image_size": 384} if name == "vit_b_16" else {"transform_input": True}
    assert known["arguments"] == expected
