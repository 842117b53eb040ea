"""Networks as strangers bring them: each is looked over, makes a set and teaches a student, or is
refused with what to do.
"""

import re
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill import (
    DistillOptions,
    Runtime,
    StudentOptions,
    as_classifier,
    build_student,
    distill,
)
from distill.models.frozen import find_batch_norms
from distill.torchvision_shim import torchvision
from inversion import (
    CollectOptions,
    SynthesisOptions,
    TeacherOptions,
    collect,
    inspect_teacher,
    load_teacher,
    synthesize,
)
from inversion.health import examine
from inversion.options import AdversaryOptions, GeneratorOptions, ObjectiveOptions
from synthesis_kernels.errors import EchosetError

RUNTIME = Runtime(seed=1, device="cpu", quiet=True)
SYNTHESIS = SynthesisOptions(
    images=20,
    batch=16,
    calls=2,
    generator=GeneratorOptions(width=8, inner_steps=1, latent=16),
    objective=ObjectiveOptions(adversary_after=1),
    adversary=AdversaryOptions(steps=1, batch=8, student=StudentOptions("convnet-4")),
)
COLLECTION = CollectOptions(images=20, draws=2, short=("draw",), expose=0.0)
LESSON = DistillOptions(steps=3, batch=16, views_per_image=2)
NORMAL = {"mean": 0.5, "std": 0.25}


def warm(network, channels=3, size=32):
    """Running statistics as of real data, and a head that decides."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.reset_running_stats()
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(4 * torch.rand(8, channels, size, size) - 2)
    return network.eval()


def ours(network, size=32, channels=3, **said):
    return as_classifier(warm(network, channels, size), size=size, **NORMAL, **said)


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


class Body(nn.Module):
    """A small network that answers in whatever form."""

    def __init__(self, form=lambda z, h: z, channels=3, classes=10):
        super().__init__()
        self.form = form
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1)
        )
        self.head = nn.Linear(16, classes)
        nn.init.normal_(self.head.weight, std=2.0)

    def forward(self, x):
        hidden = self.features(x).mean((2, 3))
        return self.form(self.head(hidden), hidden)


@dataclass
class Answer:
    loss: None
    logits: torch.Tensor
    hidden: torch.Tensor


class Fixed(Body):
    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)).view(self.count, 16))


def fixed(count):
    return as_classifier(Fixed(count).eval(), size=32, classes=10, **NORMAL)


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


def plain():
    body = Body()
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(body.features, *pool, body.head)


def mobile():
    return torchvision.models.mobilenet_v3_small(num_classes=10)


def checkpoint(wrap):
    """A network of the zoo, its weights wrapped as somebody's training left them."""

    def make(folder):
        network = warm(load_teacher(untrained=True).network, 1, 28)
        torch.save(wrap(network), folder / "w.pth")
        given = {"channels": 1, "size": 28}
        return load_teacher(TeacherOptions("convnet-32", str(folder / "w.pth"), **given))

    return make


def prefixed(prefix, network, **others):
    return {f"{prefix}{key}": value for key, value in network.state_dict().items()} | others


def own(form=lambda z, h: z, numbers=10, told=None, size=32, channels=3, **said):
    def make(folder):
        return ours(Body(form, channels, numbers), size, channels, classes=told, **said)

    return make


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


def damaged():
    network = warm(Body())
    network.features[3].weight.data[0, 0, 0, 0] = float("nan")
    return network


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(warm(Body()), {nn.Linear})


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(plain().eval())


def exported_module():
    return torch.export.export(plain().eval(), (torch.zeros(2, 3, 32, 32),)).module()


def given(network, **said):
    return as_classifier(network.eval(), channels=3, size=32, **NORMAL, **said)


REFUSED = {
    "pickled whole": (checkpoint(lambda n: n), "(?s)whole network.*mynet:net as the model"),
    "pickled within": (checkpoint(lambda n: {"model": n}), "save model.state_dict.. alone"),
    "several": (
        checkpoint(lambda n: prefixed("a.", n, **prefixed("b.", n))),
        "do not fit the model; missing",
    ),
    "nan": (lambda folder: given(damaged()), "parameter features.3.weight is not finite"),
    "untrained": (lambda folder: given(Body()), "statistics were never trained"),
    "16 images": (lambda folder: fixed(16), r"takes 16 images at once.*shape\[0\] does$"),
    "2 images": (lambda folder: fixed(2), r"takes 2 images at once"),
    "no gradient": (
        own(lambda z, h: F.one_hot(z.argmax(1), 10), output_form="logits"),
        "no gradient leads from the answer",
    ),
    "quantised": (lambda folder: given(quantised()), "as it was before it was quantised"),
    "scripted": (lambda folder: given(scripted()), "torch.jit.save it and name the file"),
    "exported module": (
        lambda folder: as_classifier(exported_module(), channels=3, size=32, **NORMAL),
        "torch.export.save the program and name the file",
    ),
    "many classes": (own(numbers=1000), "decided no image.*raise synthesis.calls"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_a_network_is_refused_with_what_to_do(make, said, tmp_path):
    with pytest.raises(EchosetError, match=said):
        synthesize(make(tmp_path), SYNTHESIS, tmp_path / "set", RUNTIME)


def test_pushing_needs_a_gradient(tmp_path):
    teacher = own(lambda z, h: z.detach())(tmp_path)
    options = replace(COLLECTION, short=("push",))
    with pytest.raises(EchosetError, match="--short draw"):
        collect(teacher, ["noise"], options, tmp_path / "set", RUNTIME)


class Alone(Body):
    def forward(self, x):
        hidden = self.features(x).mean((2, 3))
        return self.head(self.form(None, hidden))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda z, h: F.dropout(h), "differently each time.*F.dropout"),
        (lambda z, h: h - h.mean(0), "depends on the others in the batch"),
    ],
)
def test_answers_that_change_are_doubted(form, said, tmp_path):
    teacher = ours(Alone(form))
    assert any(re.search(said, line) for line in examine(teacher).warnings)
    assert not any("batch" in line for line in examine(own()(tmp_path)).warnings)
