"""Whose labels teach: the data's, the teacher's, and none."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from learning import SHORT, few_digits, lesson, run, student_like

from distill.data.augment import make_views
from distill.learner import Learner
from distill.lessons import Lessons
from distill.losses import full_loss
from distill.options import ViewOptions
from distill.runtime import Runtime
from distill.train import distill
from synthesis_kernels.errors import EchosetError


@pytest.fixture(scope="module")
def data():
    return few_digits()


def test_labels_are_the_teachers_first_choice_or_its_softmax(teacher, data):
    for temperature, expected in ((0.0, None), (2.0, 2.0)):
        options = replace(SHORT, loss={"labels": 1.0}, label_temperature=temperature)
        student = student_like(teacher).eval()
        learner = Learner(student, teacher, options).eval()
        images, answers, *rest = lesson(teacher, data, options, learner)
        loss = learner(images, answers, *rest)[0]
        log = student(images).log_softmax(1)
        if expected is None:
            torch.testing.assert_close(loss, -log.gather(1, answers.argmax(1, keepdim=True)).mean())
        else:
            torch.testing.assert_close(loss, -((answers / expected).softmax(1) * log).sum(1).mean())


def test_no_labels_are_added_beside_hinton_and_one_otherwise():
    assert full_loss({"hinton": 1.0, "at": None}) == {"hinton": 1.0, "at": 1000.0}
    assert full_loss({"at": 5.0}) == {"labels": 1.0, "at": 5.0}
    assert full_loss({"hinton": 0.0, "sp": 1.0}) == {"labels": 1.0, "sp": 1.0}
    assert full_loss({"labels": 0.0, "sp": 1.0}) == {"sp": 1.0}
    assert full_loss({"mse": None}) == {"labels": 0.025, "mse": 1.0}
    assert full_loss({"mse": 2.0, "at": 5.0}) == {"labels": 0.025, "mse": 2.0, "at": 5.0}
    assert full_loss({"mse": 1.0, "labels": 0.0}) == {"mse": 1.0}
    assert full_loss({"mse": 1.0, "dml": 1.0}) == {"labels": 1.0, "mse": 1.0, "dml": 1.0}
    assert full_loss({"hinton": 1.0, "dml": 1.0}) == {"labels": 1.0, "hinton": 1.0, "dml": 1.0}


def test_without_a_teacher_only_labels_teach(teacher, data):
    student = student_like(teacher)
    for loss in ({"labels": 1.0}, {"dml": 1.0}, {"one": 1.0}):
        distill(
            student,
            data,
            None,
            replace(SHORT, loss=loss, labels="data"),
            runtime=Runtime(device="cpu", quiet=True),
        )
    with pytest.raises(EchosetError, match="loss hinton needs a teacher"):
        distill(
            student,
            data,
            None,
            replace(SHORT, labels="data"),
            runtime=Runtime(device="cpu", quiet=True),
        )
    with pytest.raises(EchosetError, match="labels='data'"):
        distill(
            student,
            data,
            None,
            replace(SHORT, loss={"labels": 1.0}),
            runtime=Runtime(device="cpu", quiet=True),
        )


def test_labels_from_data_must_be_there_and_fit(teacher, data):
    options = replace(SHORT, labels="data")
    with pytest.raises(EchosetError, match="has no labels; use labels=teacher"):
        run(teacher, replace(data, labels=None), options)
    with pytest.raises(EchosetError, match="labels from 0 to 11"):
        run(teacher, replace(data, labels=torch.arange(120) // 10), options)


@pytest.mark.parametrize("patience", [0, 3])
@pytest.mark.parametrize("per_image", [0, 2])
def test_a_lesson_gives_each_image_its_own_answer_and_label(
    teacher, data, monkeypatch, per_image, patience
):
    asked = []
    monkeypatch.setattr(
        "distill.lessons.make_views", lambda *given: asked.append(given[2]) or make_views(*given)
    )
    options = replace(
        SHORT, steps=40, labels="data", views_per_image=per_image, patience=patience, held_out=0.25
    )

    def true_labels(images):
        pixels = (images * 255).round().to(torch.uint8)
        same = (pixels[:, None] == data.images[None]).flatten(2).all(2)
        assert (same.sum(1) == 1).all()
        return data.labels[same.int().argmax(1)]

    still = ViewOptions(rotate=0, scale=0, shift=0)
    for views in (still, ViewOptions()):
        learner = Learner(student_like(teacher), teacher, replace(options, views=views))
        lessons = Lessons(data, learner, 0, torch.device("cpu"))
        lessons.ask_beforehand(quiet=True)
        assert bool(lessons.bank) == bool(per_image)
        images, answers, labels, share, _ = lessons.draw(
            torch.tensor(10), torch.Generator().manual_seed(0)
        )
        torch.testing.assert_close(answers, teacher(images), rtol=1e-3, atol=1e-3)
        assert share == 0.25 and (
            views is not still or torch.equal(labels, F.one_hot(true_labels(images), 10).float())
        )
    if per_image:
        assert all(set(view.tolist()) <= {0, 1} for view in asked)
    else:
        assert all(torch.equal(view, 160 + torch.arange(16)) for view in asked)
    if patience:
        assert len(lessons.held_out) == 30 and len(lessons.pool) == 90
        assert torch.equal(lessons.held_out_labels, true_labels(lessons.held_out / 255))
