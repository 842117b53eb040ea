"""Hints at the cost of few operations: what a student's step has more by them, and that the maps
they compare are those of a plain network.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from distill.learner import Learner
from distill.models import ModelSpec, build_classifier, fusing
from distill.models.frozen import Frozen
from distill.optimisers import MOST_WASTED
from distill.options import DistillOptions
from distill.taps import Taps, find_stages
from distill.update import StudentState, Update
from inversion.bench.limits import Traffic
from synthesis_kernels import conv3x3, narrow_conv3x3, strided_conv
from synthesis_kernels.backend import kernel_form

CPU = torch.device("cpu")
BATCH = 8
NOTHING = torch.empty(0)
HEARD = (nn.Conv2d, nn.BatchNorm2d)


def network(name):
    spec = ModelSpec(name, channels=3, size=32, classes=10)
    return build_classifier(spec).to(memory_format=torch.channels_last)


def images_of(count):
    return torch.rand(count, 3, 32, 32).contiguous(memory_format=torch.channels_last)


def operations(teacher, precision, loss):
    """Of a student's second step, by answers and hints that were asked for beforehand."""
    options = DistillOptions(loss=loss)
    learner = Learner(network("wrn-16-1").train(), teacher, options, precision)
    state = StudentState(learner.student, CPU, 0, options, learner)
    images, answers = images_of(BATCH), torch.randn(BATCH, 10)
    hints = learner.ask_for_hints(images)[1:] if learner.takes_hints else []
    given = (answers, NOTHING, torch.zeros(()), NOTHING)
    update = Update(state, lambda: learner(images, *given, *hints), learner=learner)
    update()
    with Traffic() as traffic:
        update()
    return traffic.operations


@pytest.mark.parametrize("precision, most", [(torch.float32, 52), (torch.bfloat16, 58)])
def test_hints_take_few_operations(monkeypatch, precision, most):
    """On a GPU convolutions are the library's."""
    for kernel in (conv3x3, strided_conv):
        monkeypatch.setattr(kernel, "has", lambda precision: False)
    monkeypatch.setattr(narrow_conv3x3, "runs", lambda *tensors: False)
    monkeypatch.setitem(MOST_WASTED, "cpu", MOST_WASTED["cuda"])
    teacher = network("wrn-40-2").eval().requires_grad_(False)
    plain = operations(teacher, precision, {"hinton": 1.0})
    assert operations(teacher, precision, {"hinton": 1.0, "hints": 20.0}) - plain <= most


@pytest.mark.parametrize("name", ["wrn-16-1", "wrn-10-2"])
def test_maps_and_their_gradients_are_those_of_a_plain_network(name):
    student = network(name).train()
    stages = find_stages(student)
    student.double()
    images = images_of(4).double()
    told = []
    for form in ("auto", "reference"):
        copied = copy.deepcopy(student)
        with kernel_form(form), Taps(copied, stages) as taps:
            logits = copied(images)
            loss = logits.square().sum() + sum(each.square().mean() for each in taps.told_maps)
            loss.backward()
        told.append([*taps.told_maps, copied.network.stem.weight.grad])
        assert len(taps.told_maps) == 3
    for ours, exact in zip(*told, strict=True):
        assert (ours - exact).norm() <= 1e-9 * exact.norm()


def test_somebody_who_does_more_than_listen_is_asked_as_ever():
    student = network("wrn-10-1").train()
    images = images_of(4)
    usual = student(images)
    block = student.network.blocks[1]
    handle = block.register_forward_hook(lambda module, inputs, output: output * 0)
    with Taps(student, find_stages(student)) as taps:
        changed = student(images)
    assert not taps.maps[1].any() and not torch.allclose(changed, usual)
    handle.remove()
    torch.testing.assert_close(student(images), usual)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("name", ["wrn-16-1", "convnet-8", "cifar-vgg11", "cifar-resnet18"])
def test_a_frozen_teacher_tells_what_a_plain_one_does(monkeypatch, name, traced):
    if not traced:
        monkeypatch.setattr(fusing._Tracer, "trace", None)
    teacher = network(name).eval().requires_grad_(False)
    stages = find_stages(teacher)
    middle = [name for name, layer in teacher.network.named_modules() if type(layer) in HEARD][2:4]
    layers = (*stages.layers, *middle)
    images = images_of(3)
    frozen = Frozen(teacher, torch.float32, layers, stages.head)
    for _ in range(2):
        logits, maps, embedding = frozen.with_features(images)
    with Taps(teacher, replace(stages, layers=layers)) as taps:
        torch.testing.assert_close(logits, teacher(images), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(embedding, taps.embedding, rtol=1e-3, atol=1e-3)
    for ours, exact in zip(maps, taps.told_maps, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)
    assert not any(module._forward_hooks for module in teacher.modules())
