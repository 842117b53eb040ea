"""Images pushed over the boundary, in a student's lessons."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from learning import SHORT, few_digits, lesson, run, student_like
from torch import nn

from distill.learner import Learner
from distill.methods.boundary import push_over


@pytest.fixture(scope="module")
def data():
    return few_digits()


def test_boundary_samples_end_at_three_quarters(teacher, data, monkeypatch):
    pushed = []

    def spy(network, images, *rest):
        pushed.append(len(images))
        return push_over(network, images, *rest)

    monkeypatch.setattr("distill.methods.boundary.push_over", spy)
    run(teacher, data, replace(SHORT, steps=8, loss={"bss": 1.0}))
    assert pushed == [4] * 6


def test_pushed_images_leave_the_running_statistics_alone(teacher, data):
    found = []
    for name in ("hinton", "bss"):
        learner = Learner(
            student_like(teacher), teacher, replace(SHORT, loss={name: 1.0, "labels": 0.0})
        ).train()
        learner(*lesson(teacher, data, SHORT, learner))
        found.append(
            [value for key, value in learner.student.state_dict().items() if "running" in key]
        )
        assert all(
            layer.momentum == 0.1
            for layer in learner.student.modules()
            if isinstance(layer, nn.BatchNorm2d)
        )
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(
    "share, own, pushed", [(0.0, 4.0, 2.0), (0.375, 2.875, 1.0), (0.75, 1.75, 0.0), (1.0, 1.0, 0.0)]
)
def test_boundary_samples_count_less_and_less(teacher, data, monkeypatch, share, own, pushed):
    """The pushes are mirrored images here, and the second one never crosses."""
    student, asked, crossed = deepcopy(teacher), [], torch.tensor([True, False, True, True])
    for parameter in student.network.head.parameters():
        parameter.data.mul_(0.5)  # decides as the teacher does, less surely

    def push(network, images, base, target, unit):
        asked.append((network, unit))
        return images.flip(3), crossed

    monkeypatch.setattr("distill.methods.boundary.push_over", push)
    learner = Learner(student, teacher, replace(SHORT, loss={"bss": 1.0, "labels": 0.0})).eval()
    images, answers, _, _, draws = lesson(teacher, data, SHORT, learner)
    with torch.no_grad():
        loss = learner(images, answers, torch.empty(0), torch.tensor(share), draws)[0]

        def apart(ours, theirs):
            p, q = ((logits / 3).log_softmax(1) for logits in (theirs, ours))
            return (p.exp() * (p - q)).sum(1)

        alone = apart(student(images), answers)
        mirrored = images[alone.topk(4).indices].flip(3)
        exact = (
            own * alone.mean()
            + pushed * apart(student(mirrored), teacher(mirrored))[crossed].mean()
        )
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=1e-5)
    assert asked == [(learner._frozen[0], pytest.approx(0.3081))]
