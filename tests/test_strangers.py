"""Networks as strangers bring them: each is looked over, makes a set and teaches a student."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from strangers import (
    COLLECTION,
    NORMAL,
    RUNTIME,
    SYNTHESIS,
    Body,
    checkpoint,
    ours,
    own,
    plain,
    prefixed,
    warm,
)
from torch import nn

from distill import DistillOptions, StudentOptions, as_classifier, build_student, distill
from distill.models.frozen import find_batch_norms
from distill.torchvision_shim import torchvision
from inversion import TeacherOptions, collect, inspect_teacher, load_teacher, synthesize
from inversion.health import examine

LESSON = DistillOptions(steps=3, batch=16, views_per_image=2)


def published(name, size=32, **arguments):
    """One of torchvision's, its weights in a file."""

    def make(folder):
        network = torchvision.models.get_model(name, weights=None, num_classes=10, **arguments)
        auxiliary = {n: m for n, m in network.named_children() if n.lower().startswith("aux")}
        for key in auxiliary:  # they take larger images than the network does
            setattr(network, key, None)
        warm(network, size=size)
        for key, module in auxiliary.items():
            setattr(network, key, module)
        torch.save(network.state_dict(), folder / "w.pth")
        mean, std = (0.5,), (0.25,)
        options = TeacherOptions(
            name, str(folder / "w.pth"), arguments, size=size, mean=mean, std=std
        )
        return load_teacher(options)

    return make


@dataclass
class Answer:
    loss: None
    logits: torch.Tensor
    hidden: torch.Tensor


def flat():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
    )


def with_weight_norm():
    convolution = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 16, 3, 2))
    head = nn.utils.parametrizations.weight_norm(nn.Linear(16, 10))
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(convolution, nn.BatchNorm2d(16), nn.ReLU(), pool, nn.Flatten(), head)


def frozen_resnet():
    layer = torchvision.ops.FrozenBatchNorm2d
    network = torchvision.models.resnet18(num_classes=10, norm_layer=layer)
    for module in find_batch_norms(network).values():
        module.running_mean.uniform_(-0.2, 0.2)
        module.running_var.uniform_(0.5, 1.5)
    return network


def vit():
    network = torchvision.models.VisionTransformer(32, 8, 1, 2, 32, 64, num_classes=10)
    nn.init.normal_(network.heads.head.weight)
    return network


def swin():
    depths, heads, window = [1, 1], [1, 2], [2, 2]
    return torchvision.models.SwinTransformer([2, 2], 16, depths, heads, window, num_classes=10)


def convnext():
    stage = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([stage(16, 32, 1), stage(32, None, 1)], num_classes=10)


def vgg():
    layers = torchvision.models.vgg.make_layers([8, "M", 16, "M"], batch_norm=True)
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


def group_norm():
    return torchvision.models.resnet18(num_classes=10, norm_layer=lambda c: nn.GroupNorm(8, c))


def timm_net(folder):
    timm = pytest.importorskip("timm", reason="needs timm, the extra timm")
    network = warm(timm.create_model("test_efficientnet", num_classes=10))
    torch.save(network.state_dict(), folder / "w.pth")
    given = {"classes": 10, "size": 32}
    return load_teacher(TeacherOptions("timm:test_efficientnet", str(folder / "w.pth"), given))


def exported(folder):
    program = torch.export.export(warm(plain()), (torch.zeros(2, 3, 32, 32),))
    torch.export.save(program, folder / "n.pt2")
    return load_teacher(TeacherOptions(str(folder / "n.pt2")))


def script(make, trace=False):
    def load(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = warm(make())
            images = torch.zeros(1, 3, 32, 32)
            made = torch.jit.trace(network, images) if trace else torch.jit.script(network)
            torch.jit.save(made, str(folder / "n.pt"))
        return load_teacher(TeacherOptions(str(folder / "n.pt")))

    return load


def mobile():
    return torchvision.models.mobilenet_v3_small(num_classes=10)


slow = pytest.mark.slow
LIGHTNING = {"criterion.weight": torch.ones(10)}
SERVED = {
    "resnet18": published("resnet18"),
    "mobilenet_v2": published("mobilenet_v2"),
    "mnasnet0_5": published("mnasnet0_5"),
    "mobilenet_v3_small": published("mobilenet_v3_small"),
    "squeezenet1_1": published("squeezenet1_1"),
    "shufflenet_v2_x0_5": published("shufflenet_v2_x0_5"),
    "timm": timm_net,
    "dict": own(lambda z, h: {"features": h, "prediction": z}, told=10),
    "tuple": own(lambda z, h: (z, h), told=10),
    "dataclass": own(lambda z, h: Answer(None, z, h)),
    "softmax": own(lambda z, h: z.softmax(1)),
    "sigmoid": own(lambda z, h: z.sigmoid()),
    "one logit": own(lambda z, h: z.squeeze(1), numbers=1),
    "grey": own(channels=1, size=28),
    "four channels": own(channels=4, size=20),
    "fp16": lambda folder: as_classifier(warm(Body()).half(), size=32, **NORMAL),
    "double": lambda folder: as_classifier(warm(Body()).double(), size=32, **NORMAL),
    "group norm": lambda folder: ours(group_norm(), 16),
    "frozen norm": lambda folder: ours(frozen_resnet()),
    "sync norm": lambda folder: ours(nn.SyncBatchNorm.convert_sync_batchnorm(warm(Body()))),
    "flat": lambda folder: as_classifier(warm(flat(), 1, 28), channels=1, size=28, **NORMAL),
    "weight norm": lambda folder: ours(with_weight_norm()),
    "vit": lambda folder: ours(vit()),
    "swin": lambda folder: ours(swin()),
    "convnext": lambda folder: ours(convnext()),
    "densenet": lambda folder: ours(torchvision.models.DenseNet(8, (2, 2), 16, num_classes=10)),
    "vgg": lambda folder: ours(vgg()),
    "compiled": lambda folder: ours(torch.compile(warm(Body()), backend="eager")),
    "data parallel": lambda folder: ours(nn.DataParallel(warm(Body()))),
    "exported": exported,
    "script": script(plain),
    "trace": script(mobile, trace=True),
    "module.": checkpoint(lambda network: prefixed("module.", network)),
    "model.": checkpoint(lambda n: {"state_dict": prefixed("model.", n), "epoch": 3}),
    "backbone.": checkpoint(lambda n: {"state_dict": prefixed("backbone.", n)}),
    "beside a loss": checkpoint(lambda n: {"state_dict": prefixed("model.", n, **LIGHTNING)}),
}
LARGE = {
    "resnet50": published("resnet50"),
    "efficientnet_b0": published("efficientnet_b0"),
    "googlenet": published("googlenet", 64, init_weights=False),
    "inception_v3": published("inception_v3", 75, init_weights=False),
    "regnet_y_400mf": published("regnet_y_400mf"),
}


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, id=name) for name, make in SERVED.items()),
        *(pytest.param(make, id=name, marks=slow) for name, make in LARGE.items()),
    ],
)
def test_a_set_is_made_and_a_student_taught(make, tmp_path):
    teacher = make(tmp_path)
    modes = [module.training for module in teacher.network.modules()]
    has_norms = bool(find_batch_norms(teacher.network))
    assert inspect_teacher(teacher, needs_batch_norm=has_norms).spec.classes in (2, 10)
    examine(teacher)
    if has_norms:
        made = synthesize(teacher, SYNTHESIS, tmp_path / "set", RUNTIME)
    else:
        made = collect(teacher, ["noise", "shaders"], COLLECTION, tmp_path / "set", RUNTIME)
    assert modes == [module.training for module in teacher.network.modules()]
    pixels = made.images.float() / 255
    assert torch.equal(teacher(pixels).argmax(1), made.labels)
    student = build_student(StudentOptions("convnet-4"), made.manifest["input"])
    before = [weight.clone() for weight in student.parameters()]
    taught = distill(student, made, teacher, LESSON, None, RUNTIME).student
    assert any(not torch.equal(*pair) for pair in zip(before, taught.parameters(), strict=True))
