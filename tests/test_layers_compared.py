"""Which layers of two networks are compared."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_learnt
from learning import SHORT, few_digits, run, student_like
from torch import nn

from distill import Classifier, ModelSpec, build_classifier
from distill.learner import Learner
from distill.methods.ensemble import cut_after
from distill.runtime import Runtime
from distill.taps import Taps, find_stages
from distill.train import distill
from distill.views import to_input
from synthesis_kernels.errors import EchosetError

RUN = Runtime(device="cpu", quiet=True)


@pytest.fixture(scope="module")
def data():
    return few_digits()


@pytest.mark.parametrize("model", ["lenet5", "wrn-10-1", "cifar-vgg11", "cifar-mobilenetv2"])
def test_features_of_other_families_are_compared(teacher, data, model):
    everything = {
        "fitnet": 100.0,
        "at": 1000.0,
        "fsp": 50.0,
        "sp": 3000.0,
        "rkd": 1.0,
        "hints": 20.0,
    }
    before = list(student_like(teacher, model).parameters())
    result = run(teacher, data, replace(SHORT, steps=2, loss=everything), model)
    assert_learnt(result.student, before)


@pytest.mark.parametrize(
    "model", ["convnet-4", "lenet5", "wrn-10-1", "cifar-resnet18", "cifar-mobilenetv2"]
)
def test_a_tail_computes_what_the_network_does_after_the_cut(teacher, data, model):
    network = student_like(teacher, model).eval()
    stages = find_stages(network)
    with Taps(network, stages) as taps:
        logits = network(to_input(data.images[:4]))
    # In training, as it is when it is cut for a method.
    tail = cut_after(network.train(), stages.layers[-2]).eval()
    torch.testing.assert_close(tail(taps.maps[-2]), logits)
    assert len(list(tail.parameters())) < len(list(network.parameters()))


@pytest.mark.parametrize(
    "model, size, layers, head",
    [
        ("convnet-16", 28, ("features.0.2", "features.2.2", "features.5.2"), "head"),
        ("wrn-16-1", 32, ("blocks.1", "blocks.3", "blocks.5"), "head"),
        ("wrn-40-2", 32, ("blocks.5", "blocks.11", "blocks.17"), "head"),
        ("cifar-resnet18", 32, ("layers.1", "layers.3", "layers.5", "layers.7"), "head"),
        ("resnet18", 64, ("relu", "layer1.1", "layer2.1", "layer3.1", "layer4.1"), "fc"),
    ],
)
def test_stages_end_with_their_last_block(model, size, layers, head):
    stages = find_stages(build_classifier(ModelSpec(model, channels=3, size=size)))
    assert stages.layers == layers and stages.head == head
    assert list(stages.sides) == sorted(stages.sides, reverse=True)


def test_taps_give_what_the_layers_give_and_leave_nothing(teacher, data):
    images = to_input(data.images[:4])
    with Taps(teacher, find_stages(teacher)) as taps:
        logits = teacher(images)
    torch.testing.assert_close(teacher.network.head(taps.embedding), logits)
    torch.testing.assert_close(taps.maps[-1].mean((2, 3)), taps.embedding)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in teacher.modules()
    )


def test_layers_can_be_named(teacher):
    assert find_stages(teacher, ("features.1", "features.3")).layers == ("features.1", "features.3")
    with pytest.raises(
        EchosetError, match=r"no layer 'featurs' that gives maps .* its parts are features, head"
    ):
        find_stages(teacher, ("featurs",))
    named = replace(SHORT, loss={"at": 1.0}, teacher_layers=("features.1", "features.5"))
    learner = Learner(student_like(teacher), teacher, named)
    assert (
        learner.teacher_stages.layers == ("features.1", "features.5")
        and len(learner.student_stages.layers) == 2
    )


class Flat(torch.nn.Module):
    def __init__(self, classes: int = 10, size: int = 28, channels: int = 1) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(channels * size * size, classes)

    def forward(self, images):
        return self.linear(images.flatten(1))


def test_a_network_without_maps_is_told_which_loss_to_use(teacher, data):
    flat = build_classifier(replace(teacher.spec, model=f"{__name__}.Flat", notes={}))
    with pytest.raises(EchosetError, match="use a loss on logits, such as hinton"):
        distill(
            flat,
            data,
            teacher,
            replace(SHORT, loss={"at": 1.0}),
            runtime=Runtime(device="cpu", quiet=True),
        )
    # What its last layer reads can be compared all the same.
    before = [parameter.clone() for parameter in flat.parameters()]
    distill(flat, data, teacher, replace(SHORT, loss={"rkd": 1.0}), runtime=RUN)
    assert_learnt(flat, before)


@pytest.mark.parametrize("loss", [{"rkd": 1.0}, {"rkd": 1.0, "at": 1.0}, {"hints": 1.0}])
def test_a_network_without_a_linear_head_can_teach_and_learn_by_embedding(teacher, data, loss):
    layers = [
        nn.Conv2d(1, 6, 5),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    headless = Classifier(nn.Sequential(*layers), replace(teacher.spec, model="mine", notes={}))
    options = replace(SHORT, loss=loss)
    before = [parameter.clone() for parameter in headless.parameters()]
    distill(headless, data, teacher, options, runtime=RUN)
    assert_learnt(headless, before)
    student = student_like(teacher)
    before = [parameter.clone() for parameter in student.parameters()]
    distill(student, data, headless.eval(), options, runtime=RUN)
    assert_learnt(student, before)
