"""A student's update and its state."""

import torch

from distill import (
    DistillOptions,
    StudentOptions,
    build_student,
)
from distill.methods.hinton import hinton_loss
from distill.update import StudentState
from inversion.parts.student_step import StudentStep
from synthesis_kernels.divergence import divergence

INPUT = {"channels": 1, "size": 28, "classes": 10, "task": "classification"}
INPUT |= {"mean": [0.1307], "std": [0.3081]}


def test_hinton_loss_is_the_weighted_mean():
    teacher, student = torch.randn(4, 3), torch.randn(4, 3)
    weights = torch.tensor([1.0, 0.0, 0.0, 0.0])
    expected = divergence(teacher, student, 4.0)
    torch.testing.assert_close(hinton_loss(student, teacher, 4.0), expected.mean())
    torch.testing.assert_close(hinton_loss(student, teacher, 4.0, weights), expected[0] / 4)
    assert hinton_loss(teacher, teacher, 4.0).abs() < 1e-6


def test_an_image_of_no_weight_teaches_the_adversarial_student_nothing():
    student = build_student(StudentOptions("convnet-4"), INPUT)
    state = StudentState(student.train(), torch.device("cpu"), 0, DistillOptions(weight_decay=0))
    before = [parameter.detach().clone() for parameter in student.parameters()]
    train = StudentStep(state, 4.0, torch.float32)
    images, answers = torch.rand(4, 1, 28, 28), 9 * torch.randn(4, 10)
    train(images, answers, torch.zeros(4))
    assert all(map(torch.equal, before, student.parameters()))
    train(images, answers, torch.ones(4))
    assert not any(map(torch.equal, before, student.parameters()))


def test_a_restored_state_brings_its_dropout_along():
    student = build_student(StudentOptions("convnet-4"), INPUT)
    with torch.random.fork_rng(devices=[]):
        state = StudentState(student, torch.device("cpu"), 0)
        saved = state.state_dict()
        drawn = torch.rand(3)
        state.load_state_dict(saved)
        assert torch.equal(torch.rand(3), drawn)
