"""Networks that answer with a class a pixel: the zoo's, torchvision's and Hugging Face's."""

import json
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill import (
    Classifier,
    ModelSpec,
    as_classifier,
    build_classifier,
    load_classifier,
    save_classifier,
)
from distill.models.frozen import Frozen, find_batch_norms
from distill.models.weights import load_weights
from distill.taps import Taps, find_stages
from distill.torchvision_shim import torchvision
from inversion import TeacherOptions, inspect_teacher, load_teacher
from synthesis_kernels.errors import EchosetError


def dense(model="unet-8", size=(24, 32), classes=4, **fields):
    return ModelSpec(model, channels=3, size=size, classes=classes, task="segmentation", **fields)


def seasoned(classifier):
    """Its BatchNorm layers as if it were trained."""
    torch.manual_seed(0)
    for layer in find_batch_norms(classifier.network).values():
        layer.running_mean.uniform_(-0.2, 0.2)
        layer.running_var.uniform_(0.5, 1.5)
    return classifier.eval()


class Pyramid(nn.Module):
    """Answers at a quarter of the size, beside an average of the whole image."""

    def __init__(self, form="logits", classes=4):
        super().__init__()
        self.form = form
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, images):
        x = F.relu(self.bn(self.stem(images)))
        logits = self.head(x + self.pool(x))
        if self.form == "softmax":
            return logits.softmax(1)
        if self.form == "sigmoid":
            return logits.sigmoid()
        return OrderedDict(out=logits, aux=logits * 2)


@pytest.mark.parametrize("form", ["logits", "sigmoid"])
def test_a_map_of_one_number_a_pixel_tells_two_classes(form):
    torch.manual_seed(0)
    network = Pyramid(form, classes=1)
    if form == "logits":
        network = nn.Sequential(network.stem, network.bn, nn.ReLU(), network.head)
    spec = ModelSpec("one number", channels=3, size=(24, 32), classes=2, task="segmentation")
    teacher = seasoned(Classifier(network, spec))
    teacher.check_forward()
    images = torch.rand(3, 3, 24, 32)
    logits = teacher(images)
    assert logits.shape == (3, 2, 24, 32) and teacher.found.single
    torch.testing.assert_close(logits[:, 0], -logits[:, 1])
    raw = teacher.raw_answer(images)
    z = raw.logit() if form == "sigmoid" else raw
    whole = F.interpolate(z, (24, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(24, 32), (33, 47), 8])
@pytest.mark.parametrize("width", [1, 8, 16])
def test_the_zoo_s_network_takes_any_size_and_learns(size, width):
    network = build_classifier(dense(f"unet-{width}", size))
    network.check_forward()
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    images = torch.rand(4, *network.spec.shape)
    labels = (images[:, 0] > 0.5).long()
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_file_keeps_it(tmp_path):
    network = seasoned(build_classifier(dense()))
    save_classifier(network, tmp_path / "net.safetensors")
    again = load_classifier(tmp_path / "net.safetensors").eval()
    images = torch.rand(2, 3, 24, 32)
    assert again.spec.task == "segmentation"
    torch.testing.assert_close(again(images), network(images))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_frozen_copy_answers_alike_and_tells_the_moments_of_every_layer(precision):
    network = seasoned(build_classifier(dense("unet-16")))
    images = torch.rand(4, 3, 24, 32)
    norms = find_batch_norms(network.network)
    inputs = {}
    for name, layer in norms.items():
        layer.register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x[0]}))
    expected = network(images)
    for layer in norms.values():
        layer._forward_pre_hooks.clear()
    logits, (means, variances) = Frozen(network, precision).with_moments(images)
    most = 1e-4 if precision is torch.float32 else 0.05
    maps = [inputs[name] for name in norms]
    wanted = torch.cat([each.mean((0, 2, 3)) for each in maps])
    spread = torch.cat([each.var((0, 2, 3), correction=0) for each in maps])
    for found, true in ((logits, expected), (means, wanted), (variances, spread)):
        assert (found - true).norm() < most * true.norm()


@pytest.mark.parametrize("teacher, student", [("unet-16", "unet-8"), ("unet-8", "unet-4")])
def test_stages_of_teacher_and_student_pair_up(teacher, student):
    pair = [build_classifier(dense(name)) for name in (teacher, student)]
    stages = [find_stages(each) for each in pair]
    assert stages[0].layers == stages[1].layers and stages[0].sides == stages[1].sides
    assert stages[0].sides[0] == (12, 16) and stages[0].head is None
    with Taps(pair[0], stages[0]) as taps:
        pair[0](torch.rand(2, 3, 24, 32))
        assert [each.shape[1] for each in taps.maps] == list(stages[0].channels)
        assert taps.embedding.shape == (2, stages[0].channels[-1])


@pytest.mark.parametrize(
    "spec, message",
    [
        (ModelSpec("unet-8", channels=3), r"\(2, 10, 28, 28\).*say that this is its task"),
        (dense("convnet-4"), r"\(2, 4\).*needs a network that answers with maps, such as unet-16"),
        (dense("unet-0"), "width must be at least 1"),
    ],
)
def test_another_task_is_refused(spec, message):
    with pytest.raises(EchosetError, match=message):
        build_classifier(spec).check_forward()


def test_a_name_says_the_task(tmp_path):
    torch.save(build_classifier(dense()).network.state_dict(), tmp_path / "net.pth")
    options = TeacherOptions(
        "unet-8", str(tmp_path / "net.pth"), channels=3, size="24x32", classes=4
    )
    assert load_teacher(options).spec.task == "segmentation"


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "fcn_resnet50"])
def test_torchvision_s_networks(name):
    teacher = seasoned(build_classifier(dense(name, (64, 96), 5)))
    teacher.check_forward()
    images = torch.rand(2, 3, 64, 96)
    assert teacher.spec.output == "out" and not teacher.found.resized
    torch.testing.assert_close(teacher(images), teacher.network(images)["out"])
    assert len(find_stages(teacher).layers) > 2


def test_torchvision_s_auxiliary_head_is_left_out(capsys):
    build = torchvision.models.segmentation.lraspp_mobilenet_v3_large
    whole = build(weights=None, weights_backbone=None).state_dict()
    with_head = {**whole, "aux_classifier.4.weight": torch.zeros(21, 256, 1, 1)}
    network = build(weights=None, weights_backbone=None)
    load_weights(network, with_head, "net.pth")
    assert "net.pth: left out the auxiliary head" in capsys.readouterr().err


def test_a_pooled_batch_norm_is_not_matched():
    teacher = as_classifier(
        Pyramid(), size=(24, 32), mean=0.5, std=0.25, classes=4, task="segmentation"
    )
    inspection = inspect_teacher(seasoned(teacher))
    assert list(inspection.layers) == ["bn"]
    assert any("pool.2" in line and "left out" in line for line in inspection.warnings)
    logits, moments = Frozen(teacher).with_moments(torch.rand(2, 3, 24, 32))
    assert logits.shape == (2, 4, 24, 32) and moments.shape == (2, 8)


def test_smaller_maps_are_resized_and_that_is_said(capsys):
    network = Pyramid()
    teacher = as_classifier(network, size=(32, 48), mean=0.0, std=1.0, task="segmentation").eval()
    assert teacher.spec.classes == 4 and teacher.spec.output == "out"
    images = torch.rand(2, 3, 32, 48)
    expected = F.interpolate(network(images)["out"], (32, 48), mode="bilinear")
    torch.testing.assert_close(teacher(images), expected)
    said = "maps of 8x12, resized to 32x48 (bilinear)"
    assert said in capsys.readouterr().err
    assert said in teacher.found.describe() and any(said in line for line in teacher.remarks)


@pytest.mark.parametrize("form, found", [("softmax", "probabilities"), ("sigmoid", "sigmoid")])
def test_the_form_of_maps_is_recognised(form, found):
    network = Pyramid(form).eval()
    teacher = as_classifier(network, size=(24, 32), mean=0.0, std=1.0, task="segmentation").eval()
    assert teacher.spec.output_form == found
    images = torch.rand(2, 3, 24, 32)
    logits = network.head(
        F.relu(network.bn(network.stem(images)))
        + network.pool(F.relu(network.bn(network.stem(images))))
    )
    wanted = F.interpolate(logits, (24, 32), mode="bilinear")
    if form == "softmax":
        wanted = F.interpolate(logits.log_softmax(1), (24, 32), mode="bilinear")
    torch.testing.assert_close(teacher(images), wanted, rtol=1e-4, atol=1e-4)


def test_hugging_face_s_networks(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers, the extra hf")
    torch.manual_seed(0)
    configuration = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        id2label={0: "sky", 1: "road", 2: "tree"},
        label2id={"sky": 0, "road": 1, "tree": 2},
    )
    network = transformers.SegformerForSemanticSegmentation(configuration).eval()
    find_batch_norms(network)["decode_head.batch_norm"].running_mean.uniform_(-0.2, 0.2)
    network.save_pretrained(tmp_path / "net")
    teacher = load_teacher(TeacherOptions(f"hf:{tmp_path / 'net'}", size="24x32"))
    assert teacher.spec.task == "segmentation" and teacher.class_names == ("sky", "road", "tree")
    images = torch.rand(2, 3, 24, 32)
    expected = F.interpolate(network(images).logits, (24, 32), mode="bilinear")
    torch.testing.assert_close(teacher(images), expected, rtol=1e-4, atol=1e-4)
    assert "maps of 6x8" in teacher.found.describe()


def test_inspect_and_list_know_them(run, tmp_path):
    network = seasoned(build_classifier(dense()))
    save_classifier(network, tmp_path / "net.safetensors")
    done = run("inspect", "--teacher", tmp_path / "net.safetensors", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["spec"]["task"] == "segmentation"
    assert "unet-<width>" in run("list", "students").stdout


def test_the_bundled_teacher_knows_the_sky():
    teacher = load_teacher(TeacherOptions("camvid"))
    notes = teacher.spec.notes
    assert teacher.spec.shape == (3, 96, 128) and len(teacher.class_names) == 11
    assert notes["mean_iou"] > 0.48 and len(notes["iou"]) == 11
    street = torch.full((1, 3, 96, 128), 0.3)
    street[:, :, :48] = 0.9
    decided = teacher(street).argmax(1)
    assert teacher.class_names[decided[0, 8, 64]] == "sky"
