"""What is said of a teacher before any work, and what is refused."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import last_json
from torch import nn

from distill import Classifier, ModelSpec, build_classifier, load_images, save_classifier
from distill.models.frozen import find_batch_norms
from inversion import MNIST_SLICE, TeacherOptions, collect, load_teacher, synthesize
from inversion.health import examine
from inversion.pixels import Pixels, remembered_pixels
from synthesis_kernels import backend
from synthesis_kernels.errors import EchosetError

SPEC = ModelSpec("mine", channels=1, size=16, classes=4)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def small(channels=1, norm=True):
    """A network that hears what a picture shows."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


def trained(**changes):
    """Its statistics are those of a few pictures; its answers differ."""
    network = small()
    network[5].weight.data *= 10
    network[1].momentum = 1.0
    network(torch.rand(64, 1, 16, 16))
    return Classifier(network, replace(SPEC, **changes)).eval()


def told(teacher, mean, std):
    return Classifier(teacher.network, replace(teacher.spec, mean=mean, std=std)).eval()


@pytest.fixture
def anew(monkeypatch):
    """Nothing was said before."""
    monkeypatch.setattr(backend, "_said", set())


BUNDLED = ("mnist", "cifar10", "cifar10-small")


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_teacher_gives_no_reason_to_doubt(name):
    health = examine(load_teacher(TeacherOptions(name)))
    assert health.warnings == []
    assert health.confidence > 0.5


@pytest.mark.parametrize("name", BUNDLED)
def test_its_first_layer_tells_what_it_was_trained_on(name):
    pixels = examine(load_teacher(TeacherOptions(name))).pixels
    mean, std = (0.1307, 0.3081) if name == "mnist" else (0.41, 0.26)
    assert abs(pixels.mean - mean) < 0.05  # the shifts and cutouts of training are black
    assert abs(pixels.std - std) < 0.05


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("std", [1.0, 1 / 255])
def test_a_forgotten_normaliser_is_noticed(name, std):
    teacher = told(load_teacher(TeacherOptions(name)), (0.0,), (std,))
    (warning, *_) = examine(teacher).warnings
    assert "mean [0.0]" in warning
    assert "look wrong" in warning
    assert "--teacher.mean" in warning


@pytest.mark.parametrize("name", BUNDLED[1:])
def test_a_normaliser_that_nearly_fits_is_left_alone(name):
    teacher = load_teacher(TeacherOptions(name))
    assert not examine(told(teacher, *IMAGENET)).warnings


@pytest.mark.parametrize(("std", "possible"), [(0.7, True), (0.85, False)])
def test_a_deviation_is_an_estimate_and_may_be_a_little_too_large(std, possible):
    # Of a mean of .5 no pixels in [0, 1] deviate by more than .5.
    assert (Pixels("norm", 0.5, std).doubt is None) is possible


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_pixels_from_0_to_255_are_told_from_those_up_to_1(scale):
    images = load_images(MNIST_SLICE).images[:256].float() / 255
    network = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16, momentum=1.0))
    network(images * scale)
    network.append(nn.ReLU()).append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    teacher = Classifier(network, ModelSpec("mine", classes=16)).eval()
    warnings = [one for one in examine(teacher).warnings if "look wrong" in one]
    if scale == 1:
        assert not warnings
    else:
        assert "give --teacher.std '[0.003921569]'" in warnings[0]
        pixels = examine(told(teacher, (0.0,), (1 / 255,))).pixels
        assert abs(pixels.mean - images.mean()) < 0.02


def test_layers_that_no_linear_one_leads_to_tell_nothing():
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.BatchNorm2d(6), nn.Flatten())
    network[0].weight.data *= 20
    teacher = Classifier(network, SPEC).eval()
    assert remembered_pixels(teacher, torch.rand(8, 1, 16, 16)) is None
    assert examine(Classifier(small(norm=False), SPEC)).pixels is None


# Refused


def units():
    return told(trained(), (123.675,), (58.395,))


def broken(name, value):
    def make():
        teacher = trained()
        teacher.network.state_dict()[name][..., 0] = value
        return teacher

    return make


def overflowing():
    teacher = trained()
    teacher.network[5].weight.data[:] = 3e38
    return teacher


def deaf():
    teacher = trained()
    teacher.network[5].weight.data.zero_()
    return teacher


def centred():
    return told(trained(), (128.0,), (1.0,))


REFUSED = [
    (centred, r"--teacher.mean '\[0.501961\]' --teacher.std '\[0.003922\]'"),
    (units, r"divide by 255, --teacher.mean '\[0.485\]' --teacher.std '\[0.229\]'"),
    (broken("1.running_var", float("inf")), "BatchNorm layer 1 has running statistics that are"),
    (broken("1.running_mean", float("nan")), "BatchNorm layer 1 has running statistics that are"),
    (broken("1.running_var", -1.0), "BatchNorm layer 1 has a negative running variance"),
    (broken("0.weight", float("nan")), "parameter 0.weight is not finite"),
    (overflowing, "is not finite"),
    (deaf, "quite different pictures the same answer"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_cannot_be_right_is_refused(make, message):
    with pytest.raises(EchosetError, match=message):
        examine(make())


def test_pixels_from_0_to_255_are_refused_in_python_and_where_a_network_is_judged(
    refused, tmp_path
):
    for make_set in (synthesize, partial(collect, sources=("noise",))):
        with pytest.raises(EchosetError, match="divide by 255"):
            make_set(units(), out=tmp_path / "set")
    network = build_classifier(ModelSpec("convnet-4", channels=1, size=28, classes=10)).network
    torch.save(network.state_dict(), tmp_path / "w.pth")
    shape = ["--model.channels=1", "--model.size=28", "--model.classes=10"]
    numbers = ["--model.mean=[123.0]", "--model.std=[58.0]"]
    weights = f"--model.weights={tmp_path / 'w.pth'}"
    said = refused("evaluate", "--model=convnet-4", weights, *shape, *numbers)
    assert "divide by 255, --model.mean '[0.482353]' --model.std '[0.227451]'" in said


def test_buffers_that_are_no_numbers_are_named():
    teacher = trained()
    teacher.network.register_buffer("table", torch.tensor([float("nan")]))
    with pytest.raises(EchosetError, match="buffer table has values that are no numbers"):
        examine(teacher)
    teacher.network.table.fill_(-torch.inf)  # as a mask has it
    assert examine(teacher).warnings == []


# Said


def test_a_network_that_was_never_trained_is_said_and_not_refused():
    teacher = build_classifier(ModelSpec("convnet-8", channels=1, size=28)).eval()
    said = "\n".join(examine(teacher).warnings)
    assert "was never trained" in said
    assert "say nothing: all 10 classes are nearly as likely" in said


def test_a_head_of_zeros_was_never_trained_and_is_not_refused():
    teacher = deaf()
    teacher.network[5].bias.data.zero_()
    (warning,) = examine(teacher).warnings
    assert "say nothing: all 4 classes are nearly as likely" in warning


def test_answers_that_hardly_change_are_said():
    teacher = trained()
    teacher.network[5].bias.data[2] += 200
    (warning,) = examine(teacher).warnings
    assert "answers class 2 to all of 24 quite different pictures" in warning


def test_logits_of_enormous_size_are_said():
    teacher = trained()
    teacher.network[5].weight.data *= 1e6
    assert any("its logits are as large as" in one for one in examine(teacher).warnings)


def test_a_teacher_is_left_as_it_was_and_so_are_random_numbers():
    teacher = trained().train()
    before = teacher.weight_hash()
    state = torch.random.get_rng_state()
    examine(teacher)
    assert teacher.training
    assert teacher.weight_hash() == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(layer._forward_pre_hooks for layer in find_batch_norms(teacher).values())


# By the command line


@pytest.fixture
def stripped(tmp_path):
    """Weights of the small bundled CIFAR-10 teacher, without what its file says of mean and std."""
    path = tmp_path / "weights.pt"
    torch.save(load_teacher(TeacherOptions("cifar10-small")).network.state_dict(), path)
    return ["--teacher=convnet-32", f"--teacher.weights={path}"]


def test_inspect_lists_what_is_doubtful(run, stripped):
    done = run("inspect", *stripped, "--json")
    document = last_json(done)
    assert any("look wrong" in one for one in document["warnings"])
    assert document["pixels"]["std"] > 0.8
    assert "look wrong" in done.stdout.rpartition("\n{")[0]


@pytest.mark.slow
def test_collect_says_it_once_before_any_work(run, stripped, tmp_path, anew):
    flags = [*stripped, "--images=10", "--short=draw", f"--out={tmp_path / 'set'}"]
    said = run("collect", "shaders", *flags).stderr
    assert said.startswith("warning: mean [0.0] and std [1.0] look wrong")
    assert said.count("look wrong") == 1


VERBS = [
    ["synthesize"],
    ["collect", "noise"],
    ["distill", "--set={few}", "--student=convnet-4"],
    ["score", "{few}"],
    ["study", "--sets={{'few': '{few}'}}", "--data={few}"],
    ["demo", "--data={few}"],
    ["inspect"],
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_verbs_that_learn_from_a_teacher_look_at_it_first(refused, few, tmp_path, verb):
    model = build_classifier(ModelSpec("convnet-4"))
    find_batch_norms(model.network)["features.2.1"].running_var[0] = torch.inf
    save_classifier(model, tmp_path / "t.safetensors")
    flags = [part.format(few=few).replace("'", '"') for part in verb]
    if verb[0] != "inspect":
        end = ".html" if verb[0] == "score" else ""
        flags.append(f"--out={tmp_path / 'out'}{end}")
    said = refused(*flags, f"--teacher={tmp_path / 't.safetensors'}")
    assert "BatchNorm layer features.2.1 has running statistics that are not finite" in said
    assert not (tmp_path / "out").exists()


def test_inspect_says_what_is_possible_without_batch_norm(run, tmp_path):
    network = build_classifier(ModelSpec("convnet-gn-4", channels=1, size=28))
    save_classifier(network, tmp_path / "t.safetensors")
    done = run("inspect", f"--teacher={tmp_path / 't.safetensors'}", "--json")
    document = last_json(done)
    assert document["recipes"]["adversarial"] is None
    assert "no BatchNorm layer" in document["recipes"]["ssd-kd"]
    assert "shaders" in document["sources"]
    assert "not ssd-kd, fast-datafree" in done.stdout
