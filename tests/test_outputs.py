"""Teachers as people have them: what they answer with, and how that becomes logits."""

import pytest
import torch
from answering import IMAGES, Body, load

from distill import (
    Classifier,
    ModelSpec,
)
from distill.models.frozen import Frozen
from distill.models.outputs import find_logits
from inversion import inspect_teacher
from synthesis_kernels.errors import EchosetError


@pytest.mark.parametrize(
    ("form", "place"),
    [
        ("dict", "prediction"),
        ("named", "logits"),
        ("out", "out"),
        ("tuple", "0"),
        ("list", "1"),
        ("namedtuple", "scores"),
        ("dataclass", "logits"),
        ("nested", "heads.0"),
    ],
)
def test_the_obvious_logits_are_found_and_inspect_says_where(form, place):
    teacher = load(form)
    assert teacher.spec.output == place
    assert f"at '{place}'" in inspect_teacher(teacher).output
    wanted = load("plain")(IMAGES).softmax(1)
    torch.testing.assert_close(teacher(IMAGES).softmax(1), wanted)
    for precision in (torch.float32, torch.bfloat16):
        frozen, (mean, _) = Frozen(teacher, precision).with_moments(IMAGES)
        torch.testing.assert_close(frozen.softmax(1), wanted, rtol=0.1, atol=0.05)
        assert mean.shape == (8,)


def test_one_of_several_may_be_named():
    with pytest.raises(EchosetError, match=r"0 \(2, 4\), 1 \(2, 4\).*2 of them.*--teacher.output"):
        load("two")
    torch.testing.assert_close(load("two", output="1")(IMAGES), -load("plain")(IMAGES))


@pytest.mark.parametrize(
    ("form", "output", "said"),
    [
        ("dict", "logit", r"no 'logit', but features \(2, 8\), prediction \(2, 4\)"),
        ("plain", "0", "leave output away"),
        ("none", None, r"pooled \(2, 8\).*none of them has the shape \(2, 4\)"),
    ],
)
def test_what_is_not_there_is_said(form, output, said):
    with pytest.raises(EchosetError, match=said):
        load(form, output=output)


@pytest.mark.parametrize(
    ("form", "found"),
    [("plain", None), ("log", None), ("softmax", "probabilities"), ("sigmoid", "sigmoid")],
)
def test_probabilities_are_recognised_and_become_logits(form, found):
    teacher = load(form)
    assert teacher.spec.output_form == found
    warnings = inspect_teacher(teacher).warnings
    assert any("it seems to answer" in line for line in warnings) is (found is not None)
    ways = f"say --teacher.output_form {found}, or output_form='{found}' in Python"
    assert any(ways in line for line in warnings) is (found is not None)
    plain = load("plain")(IMAGES)
    torch.testing.assert_close(teacher(IMAGES).softmax(1), plain.softmax(1))
    if form == "sigmoid":
        torch.testing.assert_close(teacher(IMAGES), plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["two heads", "by hand", "hard", "percent"])
def test_answers_that_may_be_probabilities_are_doubted(form):
    teacher = load(form)
    assert teacher.spec.output_form is None
    warnings = inspect_teacher(teacher).warnings
    assert any("its answers to test pictures are bounded" in line for line in warnings)
    assert not any("are bounded" in line for line in inspect_teacher(load("plain")).warnings)
    if form == "percent":
        with pytest.raises(
            EchosetError, match=r"numbers from .* to 9\d, which are no numbers of a"
        ):
            load(form, output_form="sigmoid")
        return
    told = load(form, output_form="sigmoid")
    assert not any("are bounded" in line for line in inspect_teacher(told).warnings)


def test_a_row_in_the_form_of_a_map_has_its_remedy():
    with pytest.raises(EchosetError, match=r"\(2, 4, 1, 1\).* end with \.flatten\(1\)"):
        load("point").check_forward()


def test_small_logits_are_no_sigmoid():
    class Small(Body):
        def forward(self, x):
            return 0.5 + 0.1 * super().forward(x).tanh()

    classifier = Classifier(Small(), ModelSpec("small", channels=1, size=20, classes=4)).eval()
    classifier.check_forward()
    assert classifier.spec.output_form is None


def test_what_is_told_of_the_form_counts():
    teacher = load("softmax", output_form="logits")
    assert teacher.spec.output_form == "logits"
    assert not any("it seems" in line for line in inspect_teacher(teacher).warnings)
    assert torch.equal(teacher(IMAGES), teacher.network(IMAGES))
    assert "output_form" not in teacher.contract


@pytest.mark.parametrize("told", ["sigmoid", "probabilities"])
def test_a_form_that_can_not_be_is_refused(told):
    with pytest.raises(EchosetError, match=r"numbers from -.* leave output_form out, or say"):
        load("plain", output_form=told)
    with pytest.raises(EchosetError, match=r"output_form must be one of logits, .* got 'prob'"):
        ModelSpec("plain", output_form="prob")


def test_gradients_come_through_a_saturated_softmax():
    teacher = load("softmax")
    images = (IMAGES * 30).requires_grad_()
    chances = teacher.network(images)
    assert chances.min() < 1e-9
    logits = teacher(images)
    assert logits.isfinite().all()
    (gradient,) = torch.autograd.grad(logits.gather(1, chances.argmin(1, True)).sum(), images)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).norm(dim=1).min() > 0


@pytest.mark.parametrize("form", ["plain", "squeezed", "sigmoid", "squeezed sigmoid"])
def test_one_number_decides_between_two_classes(form):
    teacher = load(form, classes=2, numbers=1)
    assert "−z/2 and z/2" in inspect_teacher(teacher).output
    z = load("plain", classes=2, numbers=1).network(IMAGES)
    torch.testing.assert_close(teacher(IMAGES), torch.cat([-z / 2, z / 2], 1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(Frozen(teacher)(IMAGES), teacher(IMAGES))


def test_a_row_is_preferred_to_one_number():
    answer = {"uncertainty": torch.rand(2), "scores": torch.rand(2, 2)}
    assert find_logits(answer, (2, 2), "mine", None) == "scores"
    assert find_logits({"score": torch.rand(2), "id": torch.ones(2).long()}, (2, 2), "m", None)


def test_one_number_is_no_answer_for_more_classes():
    with pytest.raises(EchosetError, match=r"answers \(2, 1\) to two images, expected \(2, 4\)"):
        inspect_teacher(load("plain", classes=4, numbers=1))
