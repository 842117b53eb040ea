"""A student's training: optimisers, averages, what is held out, and when it stops."""

from dataclasses import replace

import pytest
import torch
from learning import PUBLISHED, SHORT, few_digits, run, student_like

from distill import Classifier
from distill.data.augment import make_views
from distill.data.images import Images
from distill.judge import Judge
from distill.lesson_key import lesson_key
from distill.optimisers import make_optimiser
from distill.options import ViewOptions
from distill.runtime import Runtime


@pytest.fixture(scope="module")
def data():
    return few_digits()


@pytest.mark.parametrize(
    "loss",
    [
        {name: PUBLISHED[name]}
        for name in ("hinton", "labels", "bss", "dml", "one", "fitnet", "hints")
    ],
)
def test_same_seed_same_student(teacher, data, loss):
    one, two, other = (
        run(teacher, data, replace(SHORT, loss=loss), seed=seed).student.weight_hash()
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_a_job_is_another_with_another_dropout(teacher, data):
    student = student_like(teacher)
    other = Classifier(student.network, replace(student.spec, arguments={"dropout": 0.5}))
    cpu = Runtime(device="cpu")
    key = lesson_key(student, data, teacher, SHORT, cpu)
    assert key != lesson_key(other, data, teacher, SHORT, cpu)


def test_images_of_another_size_and_in_colour_are_fitted(teacher):
    torch.manual_seed(0)
    colour = Images(torch.randint(256, (40, 3, 40, 50), dtype=torch.uint8), None, "colour")
    assert run(teacher, colour, SHORT).steps == 4


@pytest.mark.parametrize("name", ["muon", "sgd", "adamw"])
def test_every_optimiser_learns(teacher, data, name):
    result = run(
        teacher, data, replace(SHORT, steps=200, optimiser=name, views=ViewOptions()), "convnet-8"
    )
    assert result.agreement > 0.6


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_scheduled_optimisers_follow_torch(name):
    """The rate is the peak's share, matrices decay and vectors don't."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimiser = make_optimiser(ours, name, 0.1, 0.01)
    groups = [
        {"params": [theirs.weight], "weight_decay": 0.01},
        {"params": [theirs.bias], "weight_decay": 0.0},
    ]
    reference = (
        torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=True)
        if name == "sgd"
        else torch.optim.AdamW(groups, 0.1)
    )
    for share in (1.0, 0.5, 0.1):
        optimiser.set_share(share)
        for group in reference.param_groups:
            group["lr"] = 0.1 * share
        for network, each in ((ours, optimiser), (theirs, reference)):
            each.zero_grad()
            network(torch.ones(4, 3)).square().sum().backward()
            each.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_ema_is_the_average_of_the_students(teacher, data):
    plain = run(teacher, data, replace(SHORT, steps=1)).student.state_dict()
    averaged = run(teacher, data, replace(SHORT, steps=1, ema=0.9)).student.state_dict()
    first = student_like(teacher).state_dict()
    decay = 2 / 11  # a young average moves faster: (1 + n)/(10 + n)
    for name, value in averaged.items():
        if value.is_floating_point():
            torch.testing.assert_close(
                value, decay * first[name] + (1 - decay) * plain[name], rtol=1e-4, atol=1e-5
            )


def test_patience_stops_and_keeps_the_student_that_agreed_most(teacher, data, tmp_path):
    from distill.files import read_log

    # A rate of zero learns nothing, so nothing rises after the first look.
    options = replace(
        SHORT, steps=2000, learning_rate=0.0, patience=2, optimiser="sgd", held_out=0.25
    )
    result = run(teacher, data, options, folder=tmp_path)
    seen = [event["held_out_agreement"] for event in read_log(tmp_path / "log.jsonl")]
    assert result.steps < 2000 and result.steps == 50 * len(seen)
    assert result.held_out_agreement == max(seen) and len(seen) - 1 - seen.index(max(seen)) == 2


def test_held_out_images_are_never_trained_on(teacher, data, monkeypatch):
    seen = []

    def spy(pool, index, view, options, seed):
        seen.append(pool)
        return make_views(pool, index, view, options, seed)

    monkeypatch.setattr("distill.lessons.make_views", spy)
    run(teacher, data, replace(SHORT, patience=5, held_out=0.25))
    assert seen and all(len(pool) == 90 for pool in seen)


def test_resumed_training_ends_with_the_same_student(teacher, data, tmp_path, monkeypatch):
    """Stopped after every step, with everything on that has a state."""
    from distill.loop import Interrupted

    options = replace(
        SHORT, steps=6, loss={"one": 1.0, "fitnet": 10.0}, ema=0.9, optimiser="adamw", patience=3
    )
    whole = run(teacher, data, options).student.weight_hash()

    class Stopped:
        raised = True

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    for _ in range(6):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr("distill.loop.StopFlag", Stopped)
            run(teacher, data, options, folder=tmp_path)
    assert run(teacher, data, options, folder=tmp_path).student.weight_hash() == whole


def test_a_rate_of_zero_learns_nothing(teacher, data):
    before = student_like(teacher).parameters()
    after = run(teacher, data, replace(SHORT, learning_rate=0.0)).student.parameters()
    assert all(map(torch.equal, before, after))


def test_the_student_that_agreed_most_is_handed_back_and_a_look_changes_nothing(
    teacher, data, monkeypatch
):
    """Of four decisions so many are made wrong: the teacher's none, then those at a look after
    every step.
    """
    wrong, seen = iter([0, 3, 1, 2, 1]), []

    def decide(judge, network):
        assert not network.training
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return torch.arange(4) < next(wrong)

    monkeypatch.setattr("distill.train.CHECK", 1)
    monkeypatch.setattr(Judge, "_decide", decide)
    result = run(teacher, data, replace(SHORT, steps=9, patience=2))
    assert (result.steps, result.held_out_agreement) == (4, 0.75)
    best, kept, last = seen[2], result.student.state_dict(), seen[4]
    assert all(torch.equal(value, best[name]) for name, value in kept.items())
    assert not torch.equal(best["network.head.weight"], last["network.head.weight"])
    # Every step between the looks was one of training: BatchNorm has counted them.
    assert [each["network.features.0.1.num_batches_tracked"].item() for each in seen[1:]] == [
        1,
        2,
        3,
        4,
    ]
