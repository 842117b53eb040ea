"""What each method compares, how their terms are added up, and what is trained by them."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_learnt
from learning import PUBLISHED, SHORT, SINGLE, few_digits, lesson, run, student_like

from distill import DistillOptions, build_classifier
from distill.learner import Learner
from distill.methods.attention import attention_loss
from distill.methods.fitnet import fitnet_loss
from distill.methods.fsp import fsp_loss
from distill.methods.hints import hint_loss
from distill.methods.relational import angle_loss, distance_loss, relational_loss
from distill.methods.similarity import similarity_loss
from distill.runtime import Runtime
from distill.taps import Taps, find_stages
from distill.train import distill
from distill.views import to_input
from synthesis_kernels.errors import EchosetError


@pytest.fixture(scope="module")
def data():
    return few_digits()


@pytest.mark.parametrize("labels", ["teacher", "data"])
@pytest.mark.parametrize(
    "loss",
    [*({name: PUBLISHED[name]} for name in SINGLE), {"hinton": 1.0, "at": 1000.0, "rkd": 1.0}],
)
def test_every_method_changes_the_student_with_either_kind_of_label(teacher, data, loss, labels):
    before = student_like(teacher).weight_hash()
    result = run(teacher, data, replace(SHORT, loss=loss, labels=labels))
    assert result.student.weight_hash() != before and not result.student.training
    assert all(parameter.isfinite().all() for parameter in result.student.parameters())


@pytest.mark.parametrize(
    "name", ["hinton", "mse", "fitnet", "at", "fsp", "sp", "rkd", "rkd-d", "rkd-a", "hints"]
)
def test_a_copy_of_the_teacher_has_nothing_to_learn(teacher, data, name):
    copy = build_classifier(replace(teacher.spec, notes={}))
    copy.load_state_dict(teacher.state_dict())
    learner = Learner(copy.eval(), teacher, replace(SHORT, loss={name: 1.0, "labels": 0.0}))
    loss, logits, answers = learner.eval()(*lesson(teacher, data, SHORT, learner))
    assert loss.abs() < 1e-6 * max(1.0, PUBLISHED[name])
    torch.testing.assert_close(logits, answers, rtol=1e-4, atol=1e-3)


def test_terms_are_weighted_and_added(teacher, data):
    def loss_of(weights):
        options = replace(SHORT, loss=weights)
        torch.manual_seed(3)
        learner = Learner(student_like(teacher), teacher, options).eval()
        return learner(*lesson(teacher, data, options, learner))[0]

    together = loss_of({"hinton": 0.5, "at": 7.0, "rkd-d": 2.0})
    alone = [
        loss_of({name: weight, "labels": 0.0})
        for name, weight in (("hinton", 0.5), ("at", 7.0), ("rkd-d", 2.0))
    ]
    torch.testing.assert_close(together, sum(alone), rtol=1e-4, atol=1e-4)


def test_a_student_comes_to_the_teachers_logits_by_mse(teacher, data):
    """In few steps, on images that it learnt from."""
    options = DistillOptions(steps=150, batch=40, loss={"mse": None})
    images = to_input(data.images)
    before = student_like(teacher, "convnet-16").eval()
    after = run(teacher, data, options, "convnet-16").student
    with torch.no_grad():
        answers = teacher(images)
        far = (before(images) - answers).square().mean()
        near = (after(images) - answers).square().mean()
    assert near < far / 2


def test_what_is_trained_and_what_is_not(teacher, data):
    before = teacher.weight_hash()
    for loss, beside in (
        ({"fitnet": 1.0}, True),
        ({"dml": 1.0}, True),
        ({"one": 1.0}, True),
        ({"hinton": 1.0}, False),
    ):
        learner = Learner(student_like(teacher), teacher, replace(SHORT, loss=loss))
        inside = {id(p) for p in learner.parameters()}
        assert not inside & {id(p) for p in teacher.parameters()}
        assert {id(p) for p in learner.student.parameters()} <= inside
        assert (len(inside) > len(list(learner.student.parameters()))) == beside
    run(teacher, data, replace(SHORT, loss={"fitnet": 100.0, "bss": 1.0}))
    assert teacher.weight_hash() == before
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in teacher.modules()
    )


def test_peers_and_branches_are_as_many_as_asked_and_unlike(teacher, data):
    learner = Learner(student_like(teacher), teacher, replace(SHORT, loss={"dml": 1.0}, peers=4))
    assert (
        len(
            {
                learner.student.weight_hash(),
                *(peer.weight_hash() for peer in learner.parts["Peers"].networks),
            }
        )
        == 4
    )
    learner = Learner(
        student_like(teacher), teacher, replace(SHORT, loss={"one": 1.0}, branches=4)
    ).eval()
    images = to_input(data.images[:8])
    with Taps(learner.student, learner.parts["Tails"].stages) as trunk:
        student = learner.student(images)
    branches = [student, *(tail(trunk.maps[0]) for tail in learner.parts["Tails"].networks)]
    assert len(branches) == 4
    assert all(not torch.allclose(a, b) for i, a in enumerate(branches) for b in branches[:i])
    # What the learner reports are the first branch's answers, and that is the student whom saving
    # saves.
    torch.testing.assert_close(
        learner(images, teacher(images), torch.empty(0), torch.tensor(0.5), torch.empty(0))[1],
        student,
    )


def test_a_network_teaches_and_then_learns(teacher, data):
    first, second = student_like(teacher).train(), student_like(teacher, seed=1)
    before = [parameter.detach().clone() for parameter in first.parameters()]
    distill(second, data, first, SHORT, runtime=Runtime(device="cpu", quiet=True))
    assert first.training and all(map(torch.equal, before, first.parameters()))
    assert_learnt(
        distill(first, data, second, SHORT, runtime=Runtime(device="cpu", quiet=True)).student,
        before,
    )
    with pytest.raises(EchosetError, match="weights are frozen"):
        distill(first.requires_grad_(False), data, second, SHORT)


def kl(truth, guess, temperature):
    """T²·KL, averaged over images."""
    p, q = ((logits / temperature).log_softmax(1) for logits in (truth, guess))
    return (p.exp() * (p - q)).sum(1).mean() * temperature**2


@pytest.mark.parametrize("name", ["labels", *(name for name in SINGLE if name != "bss")])
def test_each_loss_compares_what_it_is_defined_on(teacher, data, name):
    """At a temperature of its own, and with labels that the teacher does not share."""
    together = name in ("dml", "one")
    weights = {"labels": float(together), name: 2.0}
    learner = Learner(
        student_like(teacher), teacher, replace(SHORT, loss=weights, temperature=3.0)
    ).eval()
    student, images, share = learner.student, to_input(data.images[:16]), torch.tensor(0.1)
    with (
        torch.no_grad(),
        Taps(student, find_stages(student)) as mine,
        Taps(teacher, find_stages(teacher)) as theirs,
    ):
        logits, answers = student(images), teacher(images)
    labels = torch.eye(10)[(answers.argmax(1) + 1) % 10]
    with torch.no_grad():
        given = answers if learner.takes_answers else torch.empty(0)
        loss, ours, told = learner(images, given, labels, share, torch.rand(16))
        pairs, everyone, adapted = list(zip(mine.maps, theirs.maps, strict=True)), [logits], []
        if name in ("fitnet", "fsp"):
            adapted = [
                (adapter(m), t)
                for adapter, (m, t) in zip(learner.parts["Projections"].layers, pairs, strict=True)
            ]
        if name == "hints":  # at the size of the last map, and the embedding as one more
            side = mine.maps[-1].shape[2:]
            small = [
                (F.adaptive_avg_pool2d(m, side), F.adaptive_avg_pool2d(t, side)) for m, t in pairs
            ]
            small.append((mine.embedding[:, :, None, None], theirs.embedding[:, :, None, None]))
            adapted = [
                (reader(m), t)
                for reader, (m, t) in zip(learner.parts["HintReaders"].layers, small, strict=True)
            ]
        if name == "dml":
            everyone += [peer(images) for peer in learner.parts["Peers"].networks]
        if name == "one":
            everyone += [tail(mine.maps[-2]) for tail in learner.parts["Tails"].networks]
            gates = learner.parts["Tails"].gate(mine.maps[-2].mean((2, 3)))
            everyone.append(sum(gates[:, i, None] * each for i, each in enumerate(everyone)))
        expected = {
            "labels": lambda: F.cross_entropy(logits, labels.argmax(1)),
            "hinton": lambda: kl(answers, logits, 3.0),
            "mse": lambda: (logits - answers).square().mean(),
            "fitnet": lambda: sum(fitnet_loss(*pair) for pair in adapted) / 3,
            "hints": lambda: sum(hint_loss(*pair) for pair in adapted) / 4,
            "at": lambda: sum(attention_loss(*pair) for pair in pairs),
            "fsp": lambda: sum(fsp_loss((a, b), (t, u)) for (a, t), (b, u) in pairwise(adapted)),
            "sp": lambda: similarity_loss(*pairs[-1]),
            "rkd": lambda: relational_loss(mine.embedding, theirs.embedding),
            "rkd-d": lambda: distance_loss(mine.embedding, theirs.embedding),
            "rkd-a": lambda: angle_loss(mine.embedding, theirs.embedding),
            "dml": lambda: kl(everyone[0], everyone[1], 1.0) + kl(everyone[1], everyone[0], 1.0),
            "one": lambda: (
                math.exp(-5 * 0.75**2) * sum(kl(everyone[-1], each, 3.0) for each in everyone[:-1])
            ),
        }
        exact = 2 * expected[name]() + together * sum(
            F.cross_entropy(each, labels.argmax(1)) for each in everyone
        )
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(told, answers, rtol=1e-3, atol=1e-3)
