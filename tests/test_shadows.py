"""Steps in bfloat16 with shadows of the weights are those of autocast."""

import copy

import pytest
import torch
from torch import nn

from distill.learner import Learner
from distill.models import ModelSpec, build_classifier
from distill.options import DistillOptions
from distill.shadows import Shadows
from distill.update import StudentState, Update
from inversion.parts.student_step import StudentStep

CPU = torch.device("cpu")


def network(name="wrn-10-1"):
    spec = ModelSpec(name, channels=3, size=16, classes=10)
    return build_classifier(spec).to(memory_format=torch.channels_last).train()


def batch(number):
    torch.manual_seed(number)
    images = torch.rand(8, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    return images, torch.randn(8, 10), torch.rand(8)


def trained(optimiser, with_shadows, name="wrn-10-1"):
    options = DistillOptions(optimiser=optimiser)
    state = StudentState(network(name), CPU, 0, options)
    train = StudentStep(state, 4.0, torch.bfloat16)
    assert train._update.shadows is not None
    if not with_shadows:
        train._update.shadows = None
    logits = [train(*batch(number)).clone() for number in range(4)]
    return state, logits


@pytest.mark.parametrize(
    "optimiser, name", [("muon", "wrn-10-1"), ("sgd", "lenet5"), ("adamw", "cifar-mobilenetv2")]
)
def test_steps_are_those_of_autocast(optimiser, name):
    ours, logits = trained(optimiser, True, name)
    theirs, expected = trained(optimiser, False, name)
    for one, other in zip(logits, expected, strict=True):
        assert torch.equal(one, other)
    for key, tensor in theirs.student.state_dict().items():
        assert torch.equal(ours.student.state_dict()[key], tensor), key


def test_they_are_seen_nowhere_else():
    state, _ = trained("muon", True)
    assert all(tensor.dtype is not torch.bfloat16 for tensor in state.student.state_dict().values())
    assert state.optimiser.param_groups[0]["params"][0] is next(state.student.parameters())
    weights = {id(weight) for weight in state.student.parameters()}
    assert state.shadows and all(id(weight) in weights for weight in state.shadows.weights)
    assert all(any(one is each for each in state.tensors()) for one in state.shadows.tensors)


def test_loaded_weights_are_taken_over():
    state = StudentState(network(), CPU, 0)
    train = StudentStep(state, 4.0, torch.bfloat16)
    saved = copy.deepcopy(state.state_dict())
    first = train(*batch(0)).clone()
    train(*batch(1))
    state.load_state_dict(saved)
    assert torch.equal(train(*batch(0)), first)


def test_a_second_pass_without_them_adds_its_gradients():
    student = network("convnet-8")
    learner = Learner(student, None, DistillOptions(), torch.bfloat16, answered=True)

    def lesson(images):
        logits, _, _ = learner._pass(images)
        return (logits.square().sum() + learner._answer(student, images).sum(),)

    images = batch(0)[0]
    gradients = []
    for with_shadows in (True, False):
        state = StudentState(copy.deepcopy(student), CPU, 0, DistillOptions(optimiser="sgd"))
        state.optimiser.set_share(0)
        learner.student, learner.network = state.student, state.student.__call__
        update = Update(state, lesson, learner=learner)
        if not with_shadows:
            update.shadows = None
        student = state.student
        update(images)
        gradients.append([weight.grad for weight in state.student.parameters()])
    for ours, exact in zip(*gradients, strict=True):
        assert torch.equal(ours, exact)


class Scaled(nn.Linear):
    """A layer that does more with its weight."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight / 3, self.bias)


def test_which_weights_have_one():
    tied = nn.Linear(4, 4, bias=False)
    other = nn.Linear(4, 4, bias=False)
    other.weight = tied.weight
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    layers = nn.Sequential(tied, other, Scaled(4, 4), nn.BatchNorm1d(4), normed, nn.Linear(4, 2))
    shadows = Shadows(layers)
    assert [tuple(one.shape) for one in shadows.tensors] == [(4, 4), (2, 4), (2,)]
    with shadows:
        assert tied.weight is other.weight and tied.weight.dtype is torch.bfloat16
    assert tied.weight is other.weight and tied.weight.dtype is torch.float32
