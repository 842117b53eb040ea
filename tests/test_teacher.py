import json
import os
import pickle
from argparse import Namespace
from copy import deepcopy
from dataclasses import asdict
from hashlib import sha256

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file
from torch import nn

from distill import Classifier, ModelSpec, build_classifier, load_classifier, save_classifier
from distill.models.frozen import Frozen, find_batch_norms
from distill.models.weights import load_weights, read_weights
from inversion import TeacherOptions, inspect_teacher, load_teacher
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.errors import EchosetError

ZOO = [
    ("lenet5", 1, 28, 61_932),
    ("convnet-16", 1, 28, 72_666),
    ("wrn-16-1", 3, 32, 175_066),  # the parameter counts published for CIFAR-10
    ("wrn-16-2", 3, 32, 691_674),
    ("wrn-40-2", 3, 32, 2_243_546),
    ("cifar-resnet18", 3, 32, 11_173_962),
    ("cifar-resnet34", 3, 32, 21_282_122),
    ("cifar-vgg11", 3, 32, 9_228_362),
    ("cifar-mobilenetv2", 3, 32, 2_236_682),
]


@pytest.mark.parametrize("name, channels, size, parameters", ZOO)
def test_zoo(name, channels, size, parameters):
    model = build_classifier(ModelSpec(name, channels=channels, size=size)).eval()
    assert model.parameters_count == parameters
    assert model(torch.rand(2, channels, size, size)).shape == (2, 10)
    assert find_batch_norms(model.network)


class Twice(nn.Module):
    """Its layers have two names each, and run by the second."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(
            self.first, self.norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.body(x))


def test_layers_of_two_names(tmp_path):
    network = Classifier(Twice(), ModelSpec("mine")).eval()
    network.network.norm.running_mean.uniform_(-1, 1)
    images = torch.rand(3, 1, 28, 28)
    for precision in (torch.float32, torch.bfloat16):
        logits, (mean, variance) = Frozen(network, precision).with_moments(images)
        torch.testing.assert_close(logits, network(images), rtol=0.05, atol=0.05)
        assert mean.shape == variance.shape == (8,)
    save_classifier(network, tmp_path / "twice.safetensors")
    again = Twice()
    load_weights(again, read_weights(tmp_path / "twice.safetensors"), "twice")
    assert torch.equal(again.norm.running_mean, network.network.norm.running_mean)


def test_a_zoo_network_without_batch_norm():
    named, plain = (build_classifier(ModelSpec(name)) for name in ("convnet-gn-16", "convnet-16"))
    assert named.parameters_count == plain.parameters_count  # a scale and a shift a channel, too
    assert not find_batch_norms(named.network)


@pytest.mark.parametrize(
    "name",
    [
        "convnet-4",
        "convnet-gn-4",
        "resnet-gn-4",
        "vit-32x1",
        "wrn-10-1",
        "cifar-vgg11",
        "cifar-mobilenetv2",
    ],
)
@pytest.mark.parametrize("channels, size, classes", [(1, 20, 2), (3, 33, 7)])
def test_zoo_takes_any_shape(name, channels, size, classes):
    model = build_classifier(ModelSpec(name, channels=channels, size=size, classes=classes)).eval()
    assert model(torch.rand(2, channels, size, size)).shape == (2, classes)


def test_same_seed_same_weights_and_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    one, two, other = (
        build_classifier(ModelSpec("convnet-4"), seed).weight_hash() for seed in (1, 1, 2)
    )
    assert one == two != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_torchvision_and_import_path_models():
    model = build_classifier(ModelSpec("mobilenet_v2", channels=3, size=64, classes=5)).eval()
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 5)
    model = build_classifier(
        ModelSpec("distill.models.zoo.convnet:ConvNet", {"width": "8"}, classes=3)
    )
    assert model.network.head.in_features == 32


@pytest.mark.parametrize(
    "spec, message",
    [
        (ModelSpec("resnt18"), "Did you mean resnet18"),
        (ModelSpec("no_such_package.Net"), "cannot import no_such_package"),
        (ModelSpec("distill.models.zoo.convnet.Nothing"), "no class or function named Nothing"),
        (
            ModelSpec("distill.models.zoo.convnet.ConvNet", {"widht": 3}),
            "takes no argument widht; it takes channels, classes, width",
        ),
        (ModelSpec("distill.models.zoo.convnet.ConvNet", {"width": "wide"}), "width"),
        (ModelSpec("wrn-15-1"), "depth must be 10, 16, 22"),
        (ModelSpec("convnet-gn-6"), "width must be a multiple of 4, got 6"),
        (ModelSpec("resnet-gn-10"), "width must be a multiple of 4, got 10"),
        (ModelSpec("vit-48x2"), "width must be a multiple of 32, got 48"),
        (ModelSpec("vit-64x0"), "depth must be at least 1"),
        (ModelSpec("vit-64x1", size=7), "at least 8×8, got 7×7; use 'convnet-gn-16' instead"),
        (ModelSpec("lenet5", size=8), "at least 16×16"),
        (ModelSpec("convnet-4", mean=(0.1, 0.2)), "mean has 2 values"),
        (ModelSpec("convnet-4", std=(0.0,)), "std must be positive"),
    ],
)
def test_models_that_cannot_be_built_say_why(spec, message):
    with pytest.raises(EchosetError, match=message):
        build_classifier(spec)


def test_saved_model_comes_back_and_equal_weights_give_equal_bytes(tmp_path):
    spec = ModelSpec(
        "convnet-4", classes=3, mean=(0.5,), std=(0.2,), notes={"recipe": "none", "accuracy": 0.1}
    )
    model = build_classifier(spec).to(memory_format=torch.channels_last).eval()
    for name in "ab":
        save_classifier(model, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = load_classifier(tmp_path / "a.safetensors").eval()
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(loaded(images), model(images))
    assert loaded.spec == spec


def test_bundled_teacher_is_what_it_says(teacher):
    found = inspect_teacher(teacher)
    assert found.parameters <= 400_000
    assert len(found.layers) == 6 and found.warnings == []
    assert teacher.spec.notes["accuracy"] >= 0.993
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_teacher_is_looked_at_on_the_cpu_whatever_kernels_will_run(teacher, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with kernel_form("triton"):
        assert inspect_teacher(deepcopy(teacher).cpu()).warnings == []


@pytest.mark.parametrize(
    ("model", "name", "least"),
    [
        ("cifar10", "cifar10_wrn40x2", 0.94),
        ("cifar10-small", "cifar10_convnet32", 0.89),
        ("cifar10-gn", "cifar10_resnetgn16", 0.80),
        ("cifar10-vit", "cifar10_vit96x3", 0.72),
        ("camvid", "camvid_unet16", 0.82),
    ],
)
def test_the_other_bundled_teachers_are_what_their_record_says(model, name, least):
    teacher = load_teacher(TeacherOptions(model=model))
    listed = json.loads((ROOT / "configs" / "results" / "teachers.json").read_text())["teachers"]
    entry = next(entry for entry in listed if entry["name"] == name)
    assert entry["sha256"] == sha256((ROOT / entry["file"]).read_bytes()).hexdigest()
    assert entry["accuracy"] == teacher.spec.notes["accuracy"] >= least
    assert (
        entry["recipe"].items() <= teacher.spec.notes.items()
        and entry["parameters"] == inspect_teacher(teacher, needs_batch_norm=False).parameters
    )
    assert (ROOT / entry["file"]).stat().st_size < 5e6


class Masked(nn.Module):
    """As many networks are written: an argument that is seldom given."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.head = (
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.Linear(4, 3),
        )

    def forward(self, x, mask=None, scale=2.0):
        x = torch.relu(self.norm(self.convolution(x)))
        if mask is not None:
            x = x * mask
        return scale * self.head(x.mean((2, 3)))


def test_optional_arguments_are_none_in_the_frozen_copy_too():
    network = Masked()
    network.norm.running_mean.uniform_(-1, 1)
    masked = Classifier(network.eval(), ModelSpec("test", channels=1, size=16, classes=3))
    images = torch.rand(5, 1, 16, 16)
    frozen = Frozen(masked)
    torch.testing.assert_close(frozen(images), masked(images))
    assert [tap.relu for tap in frozen._taps.values()] == [True]  # traced all the same
    assert inspect_teacher(masked).layers == {"norm": 4}


def test_a_classifier_is_where_its_network_is():
    network = nn.Linear(4, 2, device="meta")
    assert Classifier(network, ModelSpec("test", size=2, classes=2)).mean.device.type == "meta"


def test_weights_that_know_their_normalisation_keep_it(tmp_path):
    path = tmp_path / "w.safetensors"
    notes = {"views": {"shift": 0.25}}
    saved = build_classifier(
        ModelSpec(
            "convnet-4", channels=1, size=16, classes=3, mean=(0.3,), std=(0.2,), notes=notes
        ),
        1,
    )
    save_classifier(saved, path)
    for given in ({}, {"mean": (0.3,), "size": 16}):
        loaded = load_teacher(TeacherOptions("convnet-4", str(path), **given))
        assert loaded.contract == saved.contract and loaded.spec.notes == notes
        assert loaded.weight_hash() == saved.weight_hash()
    for model, weights in (("convnet-4", str(path)), (str(path), None)):
        with pytest.raises(
            EchosetError,
            match=r"w\.safetensors says of itself that its mean is \(0\.3,\), not \(0\.5,\); leave mean away",
        ):
            load_teacher(TeacherOptions(model, weights, mean=(0.5,)))
    other = tmp_path / "o.safetensors"
    save_classifier(
        build_classifier(ModelSpec("convnet-4", channels=1, size=16, classes=3), 1), other
    )
    with pytest.raises(EchosetError, match="give the weights' own network as the model"):
        load_teacher(TeacherOptions(str(other), str(path)))


# Weights from strangers


def test_a_checkpoint_with_its_script_s_arguments_is_read(tmp_path):
    source = build_classifier(ModelSpec("convnet-4"), 1).network
    torch.save(
        {"model": source.state_dict(), "args": Namespace(lr=0.1, data="x")}, tmp_path / "w.pt"
    )
    assert read_weights(tmp_path / "w.pt").keys() == source.state_dict().keys()


@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_checkpoints_are_unwrapped(tmp_path, nest, prefix):
    source, target = (build_classifier(ModelSpec("convnet-4"), seed).network for seed in (1, 2))
    content = {prefix + k: v for k, v in source.state_dict().items()}
    torch.save({nest: content, "epoch": 3} if nest else content, tmp_path / "w.pt")
    load_weights(target, read_weights(tmp_path / "w.pt"), "w.pt")
    assert all(
        torch.equal(a, b)
        for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_weights_that_do_not_fit_are_named():
    network = build_classifier(ModelSpec("convnet-4")).network
    weights = network.state_dict()
    del weights["head.bias"]
    weights["extra.weight"] = torch.zeros(1)
    weights["head.weight"] = torch.zeros(10, 3)
    with pytest.raises(EchosetError) as error:
        load_weights(network, weights, "mine.pt")
    for part in (
        "mine.pt",
        "missing: head.bias",
        "unexpected: extra.weight",
        "head.weight is (10, 3), the model's is (10, 16)",
    ):
        assert part in str(error.value)


class Trap:
    def __reduce__(self):
        return os.system, ("touch echoset-was-here",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "trap": Trap()}, tmp_path / "w.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("w.pt", "plain.pt"):
        with pytest.raises(EchosetError, match=name):
            read_weights(tmp_path / name)
    assert not (tmp_path / "echoset-was-here").exists()


def test_a_model_file_cannot_name_code_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = {
        "model": "os.system",
        "arguments": {"command": "touch echoset-was-here"},
        "mean": [0.0],
        "std": [1.0],
    }
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", {"echoset": json.dumps(spec)})
    with pytest.raises(EchosetError, match=r"asks to import 'os\.system'"):
        load_teacher(TeacherOptions(str(tmp_path / "m.safetensors")))
    with pytest.raises(EchosetError, match="asks to import"):
        load_classifier(tmp_path / "m.safetensors")
    assert not (tmp_path / "echoset-was-here").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "]
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_weights_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EchosetError, match=name):
        load_weights(
            build_classifier(ModelSpec("convnet-4")).network, read_weights(tmp_path / name), name
        )


def test_a_weights_file_is_no_teacher_by_itself(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(EchosetError, match="holds weights alone"):
        load_teacher(TeacherOptions(str(tmp_path / "w.safetensors")))
    with pytest.raises(EchosetError, match="no model file"):
        load_teacher(TeacherOptions(str(tmp_path / "none.safetensors")))


# Refused before any work


def trained(network, **changes):
    for layer in find_batch_norms(network).values():
        layer.running_mean.uniform_(-1, 1)
    return Classifier(
        network, ModelSpec("test", **({"channels": 1, "size": 16, "classes": 4} | changes))
    ).eval()


def small(norm=nn.BatchNorm2d, channels=1):
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3),
        norm(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def test_teachers_that_cannot_be_inverted_say_why():
    untrained = Classifier(small(), ModelSpec("test", channels=1, size=16, classes=4))
    nan = trained(small())
    nan.network[1].running_var[2] = float("nan")
    negative = trained(small())
    negative.network[1].running_var[2] = -1
    weights = trained(small())
    weights.network[0].weight.data[0] = float("inf")
    cases = [
        (
            Classifier(small(nn.Identity), ModelSpec("test", channels=1, size=16, classes=4)),
            "or no generator: echoset collect",
        ),
        (
            Classifier(small(nn.InstanceNorm2d), ModelSpec("test", channels=1, size=16, classes=4)),
            "no BatchNorm layer",
        ),
        (untrained, "never trained"),
        (nan, "layer 1 has running statistics that are not finite"),
        (negative, "layer 1 has a negative running variance"),
        (weights, "parameter 0.weight is not finite"),
        (trained(small(channels=3)), "does not take images of shape"),
        (trained(small(), classes=5), r"answers \(2, 4\) to two images, expected \(2, 5\)"),
        (
            trained(nn.Sequential(small()[:3], nn.Flatten(), nn.Linear(6 * 26 * 26, 4))),
            "--teacher.size",
        ),
    ]
    for teacher, message in cases:
        with pytest.raises(EchosetError, match=message):
            inspect_teacher(teacher)


class FrozenBatchNorm(nn.Module):
    """As in detection libraries: statistics as buffers, no BatchNorm class."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return (x - self.running_mean.view(1, -1, 1, 1)) / self.running_var.view(1, -1, 1, 1).sqrt()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm])
def test_every_kind_of_batch_norm_is_tapped(norm):
    teacher = trained(small(norm))
    assert inspect_teacher(teacher).kinds == {norm.__name__: 1}
    images = torch.rand(8, 1, 16, 16)
    logits, (mean, variance) = Frozen(teacher).with_moments(images)
    torch.testing.assert_close(logits, teacher(images))
    inputs = teacher.network[0](images)
    torch.testing.assert_close(mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(variance, inputs.var((0, 2, 3), correction=0))


def test_batch_norm_1d_is_tapped():
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    assert inspect_teacher(trained(network)).layers == {"2": 6}


@pytest.mark.parametrize(
    "model", ["wrn-10-1", "cifar-resnet18", "cifar-mobilenetv2", "convnet-8", "resnet18"]
)
def test_a_frozen_copy_answers_as_the_original(model):
    spec = ModelSpec(model, channels=3, size=32, classes=10, mean=(0.5,), std=(0.25,))
    original = build_classifier(spec)
    for layer in find_batch_norms(original.network).values():  # as if trained
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        layer.running_mean.uniform_(-0.2, 0.2)
        layer.running_var.uniform_(0.5, 1.5)
    original.eval()
    images = torch.rand(4, 3, 32, 32)
    before = {name: value.clone() for name, value in original.state_dict().items()}
    given = dict.fromkeys(find_batch_norms(original.network))  # in this order

    def record(name):
        return lambda layer, inputs: given.update({name: inputs[0]})

    handles = [
        layer.register_forward_pre_hook(record(name))
        for name, layer in find_batch_norms(original.network).items()
    ]
    expected = original(images)
    for handle in handles:
        handle.remove()
    frozen = Frozen(original)
    logits, (mean, variance) = frozen.with_moments(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        mean, torch.cat([x.mean((0, 2, 3)) for x in given.values()]), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(
        variance,
        torch.cat([x.var((0, 2, 3), correction=0) for x in given.values()]),
        rtol=1e-3,
        atol=1e-4,
    )
    # The original is as it was, its weights still learn, and `refresh` follows them.
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert all(p.requires_grad for p in original.parameters())
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.mul_(1.1)
    frozen.refresh()
    torch.testing.assert_close(frozen(images), original(images), rtol=1e-4, atol=1e-4)


def test_gradients_through_a_frozen_copy_are_the_originals():
    original = trained(small()).double()
    images = torch.rand(4, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(original(images).square().sum(), images)
    frozen = Frozen(original)
    (ours,) = torch.autograd.grad(frozen.classifier(images).square().sum(), images)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


def test_a_batch_norm_that_does_more_is_left_to_itself():
    class WithActivation(nn.BatchNorm2d):  # as timm's BatchNormAct2d
        def forward(self, x):
            return super().forward(x).tanh()

    teacher, images = trained(small(WithActivation)), torch.rand(4, 1, 16, 16)
    logits, (mean, _) = Frozen(teacher).with_moments(images)
    torch.testing.assert_close(logits, teacher(images))
    torch.testing.assert_close(mean, teacher.network[0](images).mean((0, 2, 3)))


def test_a_network_that_cannot_be_traced_is_copied_all_the_same():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, x):
            return self.inner(x) if float(x.sum()) >= 0 else self.inner(-x)

    teacher, images = trained(Stubborn()), torch.rand(4, 1, 16, 16)
    torch.testing.assert_close(Frozen(teacher).with_moments(images)[0], teacher(images))


def test_layers_that_run_twice_or_never_are_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.head = (
                nn.Conv2d(1, 4, 3),
                nn.BatchNorm2d(4),
                nn.Linear(4, 4),
            )

        def forward(self, x):
            return self.head(self.norm(torch.relu(self.norm(self.first(x)))).mean((2, 3)))

    with pytest.raises(EchosetError, match="norm runs twice"):
        Frozen(trained(Twice())).with_moments(torch.rand(4, 1, 16, 16))

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.spare = small(), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.inner(x)

    with pytest.raises(EchosetError, match="spare took no part"):
        Frozen(trained(Unused())).with_moments(torch.rand(4, 1, 16, 16))


def test_the_distance_falls_to_zero_on_the_statistics_themselves():
    network = small()
    network.train()
    images = torch.rand(16, 1, 16, 16)
    network[1].momentum = 1.0
    network(images)
    network[1].running_var *= 1 - 1 / (16 * 14 * 14)  # torch keeps the unbiased variance
    teacher = Classifier(network, ModelSpec("test", channels=1, size=16, classes=4)).eval()
    frozen = Frozen(teacher)
    for relative in (False, True):
        target = frozen.target(relative)
        assert target.distance(frozen.with_moments(images)[1]) < 1e-4
        assert target.distance(frozen.with_moments(images * 2)[1]) > 1e-2


def test_a_wrapped_parallel_module_is_still_found():
    assert list(find_batch_norms(nn.DataParallel(small()))) == ["module.1"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": 5}, "'model' of its 'echoset' metadata is not a str"),
        ({"arguments": None}, "'arguments' of its"),
        ({"notes": []}, "'notes' of its"),
        ({"size": "28"}, "size must be a whole number"),
        ({"classes": 1}, "classes must be a whole number from 2"),
        ({"std": ["a"]}, "std must be a list of numbers"),
    ],
)
def test_a_model_file_s_description_is_checked(tmp_path, change, said):
    told = asdict(ModelSpec("lenet5")) | change
    save_file({"w": torch.zeros(1)}, tmp_path / "m.safetensors", {"echoset": json.dumps(told)})
    with pytest.raises(EchosetError, match=f"m.safetensors.*{said}"):
        load_classifier(tmp_path / "m.safetensors")


def test_a_model_file_gets_no_memory_that_its_weights_do_not_fill(tmp_path):
    told = asdict(ModelSpec("convnet-1000000"))  # 36 TB
    save_file({"w": torch.zeros(1)}, tmp_path / "m.safetensors", {"echoset": json.dumps(told)})
    with pytest.raises(
        EchosetError, match=r"m.safetensors do not fit the model; missing: .*; unexpected: w"
    ):
        load_classifier(tmp_path / "m.safetensors")


def test_a_checkpoint_nested_in_itself_ends(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(EchosetError, match="holds no weights"):
        read_weights(tmp_path / "m.pt")


def test_a_frozen_copy_in_bfloat16_follows_what_its_original_learns():
    original = build_classifier(ModelSpec("wrn-10-1", channels=3, size=32)).eval()
    frozen = Frozen(original, torch.bfloat16)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.mul_(1.3).add_(0.01)
        for layer in find_batch_norms(original.network).values():
            layer.running_mean.uniform_(-0.2, 0.2)
    frozen.refresh()
    now, anew = frozen.state_dict(), Frozen(original, torch.bfloat16).state_dict()
    assert now.keys() == anew.keys() and all(
        torch.equal(value, anew[name]) for name, value in now.items()
    )
    matrices = [name for name, value in now.items() if value.dtype is torch.bfloat16]
    assert matrices and not any(torch.equal(now[name], before[name]) for name in matrices)
