"""Figures of a classifier, against numpy."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distill import evaluate, load_images
from distill.data.images import Images
from distill.evaluation import predict
from distill.models import Classifier, ModelSpec
from distill.runtime import Runtime
from distill.tally import Tally
from distill.tasks import find_task
from distill.tasks.places import decide
from inversion import MNIST_SLICE
from synthesis_kernels.errors import EchosetError

# A network whose logits are the image's nine pixels, from −10 to 10.
READER = Classifier(nn.Flatten(), ModelSpec("reader", size=3, classes=9, mean=(0.5,), std=(0.05,)))


def written(pixels, labels):
    return Images(
        torch.as_tensor(pixels, dtype=torch.uint8).view(-1, 1, 3, 3),
        torch.as_tensor(labels).long(),
        "written",
    )


def distinct(seed, count=200):
    """Images of nine different pixels, and labels."""
    rng = np.random.default_rng(seed)
    return rng.random((count, 9)).argsort(1) * 17 + rng.integers(0, 17, (count, 1)), rng.integers(
        0, 9, count
    )


def chances(pixels):
    logits = np.exp((pixels / 255 - 0.5) / 0.05)
    return logits / logits.sum(1, keepdims=True)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def calibration_error(logits, labels):
    tally = Tally(find_task("classification"), logits.shape[1], logits.device)
    tally.add(logits, labels, decide(logits))
    return tally.figures(False)["ece"]


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 60), st.floats(0.1, 10))
@settings(max_examples=20)
def test_calibration_error_bin_by_bin(seed, classes, count, scale):
    logits = normal(seed, count, classes) * scale
    labels = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    answers = [
        (max(row), row.index(max(row)) == label)
        for row, label in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True)
    ]
    expected = 0.0
    for number in range(10):
        mine = [
            (sure, right)
            for sure, right in answers
            if number / 10 <= sure < (number + 1) / 10 or sure == 1 == (number + 1) / 10
        ]
        if mine:
            accuracy, confidence = (
                sum(right for _, right in mine) / len(mine),
                sum(sure for sure, _ in mine) / len(mine),
            )
            expected += len(mine) / count * abs(accuracy - confidence)
    assert calibration_error(logits, labels) == pytest.approx(expected, abs=1e-6)


def test_errors_of_opposite_sign_cancel_within_a_bin_only():
    sure = torch.tensor([[0.0, 50.0]] * 2)  # in the last bin
    half = torch.tensor([[0.0, math.log(1.5)]] * 2)  # 60 % sure
    assert calibration_error(sure, torch.tensor([1, 0])) == pytest.approx(0.5)
    assert calibration_error(torch.cat([sure, half]), torch.tensor([1, 0, 1, 1])) == pytest.approx(
        0.25 + 0.2, abs=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
def test_figures_against_numpy(seed):
    pixels, labels = distinct(seed)
    found, exact = (
        evaluate(READER, written(pixels, labels), runtime=Runtime(quiet=True)),
        chances(pixels),
    )
    right = exact.argmax(1) == labels
    assert found.accuracy == pytest.approx(right.mean())
    assert found.top5 == pytest.approx((exact.argsort(1)[:, -5:] == labels[:, None]).any(1).mean())
    assert found.entropy == pytest.approx(-(exact * np.log(exact)).sum(1).mean(), rel=1e-4)
    assert found.per_class == pytest.approx([right[labels == c].mean() for c in range(9)])
    assert (
        found.images == 200
        and found.agreement is None
        and found.transfer is None
        and found.boundary_pairs == 0
    )


def test_a_perfect_classifier():
    labels = np.arange(18) % 9
    found = evaluate(READER, written(np.eye(9)[labels] * 255, labels), runtime=Runtime(quiet=True))
    assert found.accuracy == found.top5 == 1 and found.per_class == [1.0] * 9
    assert found.ece == pytest.approx(0, abs=1e-6) and found.entropy == pytest.approx(0, abs=1e-6)


def test_a_classifier_that_always_says_the_same():
    found = evaluate(
        READER, written(np.full((20, 9), 100), [0] * 5 + [8] * 15), runtime=Runtime(quiet=True)
    )
    assert found.accuracy == 0.25 and found.entropy == pytest.approx(math.log(9))
    assert (
        found.ece == pytest.approx(0.25 - 1 / 9)
        and found.per_class[0] == 1
        and found.per_class[8] == 0
    )
    wrong = evaluate(READER, written(np.eye(9)[[1, 1]] * 255, [0, 2]), runtime=Runtime(quiet=True))
    assert wrong.accuracy == 0 and wrong.ece == pytest.approx(1, abs=1e-6)


def test_few_classes_have_no_top5():
    few = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(9, 5)), ModelSpec("few", size=3, classes=5)
    )
    assert (
        evaluate(few, written(np.zeros((3, 9)), [0, 1, 4]), runtime=Runtime(quiet=True)).top5
        is None
    )


def test_everything_about_the_bundled_teacher(teacher):
    data = load_images(MNIST_SLICE).chosen(torch.arange(0, 2000, 50))
    found = evaluate(teacher, data, teacher, attacks=4, runtime=Runtime(device="cpu", quiet=True))
    assert (
        found.agreement == 1
        and found.transfer == found.transfer_teacher
        and 0 <= found.transfer <= 1
    )
    assert found.magnitude_similarity == pytest.approx(
        1, abs=1e-5
    ) and found.angle_similarity == pytest.approx(1, abs=1e-5)
    assert (
        0 < found.boundary_pairs <= 36
        and 0 <= found.ece <= 1
        and 0 <= found.entropy <= math.log(10)
    )
    assert found.accuracy <= found.top5 <= 1 and json.loads(json.dumps(asdict(found))) == asdict(
        found
    )
    assert (
        evaluate(teacher, data, teacher, attacks=4, runtime=Runtime(device="cpu", quiet=True))
        == found
    )


def test_answers_that_are_known_already_are_not_asked_for_again(teacher):
    data = load_images(MNIST_SLICE).chosen(torch.arange(20))
    pixels, labels = distinct(7, 50)
    logits = predict(READER, written(pixels, labels).images, torch.device("cpu"))
    other = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(9, 9)), READER.spec)
    asked, given_ = (
        evaluate(
            other, written(pixels, labels), READER, teacher_logits=t, runtime=Runtime(quiet=True)
        )
        for t in (None, logits)
    )
    assert asked == given_ and 0 <= asked.agreement < 1
    ours = predict(other, written(pixels, labels).images, torch.device("cpu")).argmax(1)
    assert asked.agreement == pytest.approx((ours.numpy() == pixels.argmax(1)).mean())
    shuffled = predict(teacher, data.images, torch.device("cpu")).roll(1, 1)
    assert (
        evaluate(
            teacher,
            data,
            teacher,
            teacher_logits=shuffled,
            runtime=Runtime(device="cpu", quiet=True),
        ).agreement
        == 0
    )


def test_attacks_are_spread_over_the_data_and_no_more_than_it_has(teacher):
    data = load_images(MNIST_SLICE).chosen(torch.tensor([3, 700]))
    assert evaluate(
        teacher, data, teacher, attacks=99, runtime=Runtime(device="cpu", quiet=True)
    ) == evaluate(teacher, data, teacher, attacks=2, runtime=Runtime(device="cpu", quiet=True))


def test_attacks_work_where_gradients_are_off():
    pixels, _ = distinct(8, 20)
    data = written(pixels, pixels.argmax(1))
    expected = evaluate(READER, data, READER, attacks=5, runtime=Runtime(quiet=True))
    with torch.no_grad():
        assert evaluate(READER, data, READER, attacks=5, runtime=Runtime(quiet=True)) == expected
    assert expected.transfer is not None


def test_evaluation_refuses_no_images():
    with pytest.raises(EchosetError, match="written"):
        evaluate(READER, written(np.zeros((0, 9)), []), runtime=Runtime(quiet=True))


def test_networks_of_other_classes_are_not_compared():
    other = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(9, 12)), replace(READER.spec, classes=12)
    )
    pixels, labels = distinct(7, 5)
    with pytest.raises(EchosetError, match="a network of classes 12 and one of classes 9"):
        evaluate(other, written(pixels, labels), READER, runtime=Runtime(quiet=True))


def test_transfer_tells_the_classifier_from_its_teacher():
    """Both know every image: one by a pixel next to its threshold, the other by one that the attack
    cannot take across.
    """

    def reads(pixel):
        layer = nn.Linear(9, 2)
        with torch.no_grad():
            layer.weight.zero_()[1, pixel] = 10.0
            layer.bias.copy_(torch.tensor([5.0, 0.0]))  # the second class from one half on
        return Classifier(
            nn.Sequential(nn.Flatten(), layer), ModelSpec("reader", size=3, classes=2)
        )

    labels, pixels = torch.arange(20) % 2, torch.full((20, 9), 100)
    pixels[:, 0], pixels[:, 1] = 127 + labels, 255 * labels
    for classifier, teacher, fooled in ((1, 0, (0, 1)), (0, 1, (0, 0))):
        found = evaluate(
            reads(classifier),
            written(pixels, labels),
            reads(teacher),
            attacks=20,
            runtime=Runtime(device="cpu", quiet=True),
        )
        assert (
            found.accuracy == found.agreement == 1
            and (found.transfer, found.transfer_teacher) == fooled
        )
