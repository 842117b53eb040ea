"""What a student can't be taught by is refused, and named."""

from dataclasses import replace

import pytest
from learning import SHORT, few_digits, run, student_like

from distill import Classifier, StudentOptions, build_student
from distill.options import ViewOptions
from distill.runtime import Runtime
from distill.train import distill
from synthesis_kernels.errors import EchosetError


@pytest.fixture(scope="module")
def data():
    return few_digits()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"loss": {"hintn": 1.0}}, "no loss 'hintn'"),
        ({"loss": {"hinton": -1.0}}, "weight of loss 'hinton'"),
        ({"loss": {"hinton": float("nan")}}, "weight of loss 'hinton'"),
        ({"loss": {}}, "no loss has a weight"),
        ({"loss": {"dml": 1.0, "one": 1.0}}, "choose one of them"),
        ({"loss": {"dml": 1.0}, "peers": 1}, "peers must be at least 2"),
        ({"loss": {"one": 1.0}, "branches": 1}, "branches must be at least 2"),
        (
            {
                "loss": {"at": 1.0},
                "student_layers": ("features.1",),
                "teacher_layers": ("features.1", "features.3"),
            },
            "make no pairs",
        ),
        ({"loss": {"fsp": 1.0}, "student_layers": ("features.1",)}, "only one pair"),
        ({"loss": {"one": 1.0}, "student_layers": ("features.1",)}, "one stage only"),
        ({"ema": 1.0}, "ema"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"optimiser": "foo"}, "optimiser must be one of muon, sgd, adamw, got 'foo'"),
        ({"patience": 1, "held_out": 0.0}, "leaves none to judge by"),
        ({"patience": 1, "held_out": 0.999}, "none to learn from"),
        ({"held_out": 1.0}, "held_out"),
        ({"patience": -1}, "patience"),
    ],
)
def test_what_cannot_be_done_is_refused(teacher, data, change, message):
    with pytest.raises(EchosetError, match=message):
        run(teacher, data, replace(SHORT, **change))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("operations", -1, "operations"),
        ("cutout", 8, "cutout is a part of the image's side"),
        ("shift", -0.1, "shift is a part"),
        ("rotate", float("nan"), "rotate"),
        ("mixup", 2.0, "mixup"),
        ("mixup", -0.5, "mixup must lie in"),
        ("cutmix", 50, "cutmix must lie in"),
        ("erase", 1.5, "erase must lie in"),
    ],
)
def test_views_that_cannot_be_made_are_refused_when_they_are_named(name, value, message):
    with pytest.raises(EchosetError, match=message):
        ViewOptions(**{name: value})


@pytest.mark.parametrize("method", ["dml", "one"])
def test_peers_and_branches_need_a_student_that_can_be_built_again(teacher, data, method):
    whole = student_like(teacher)
    for name in ("mine", "convnet-8"):  # no name of anything, and another network's
        mine = Classifier(whole.network, replace(whole.spec, model=name))
        with pytest.raises(EchosetError, match=f"'{name}' doesn't say how to build it"):
            distill(
                mine,
                data,
                teacher,
                replace(SHORT, loss={method: 1.0}),
                runtime=Runtime(device="cpu", quiet=True),
            )


def test_a_student_that_answers_otherwise_in_training_is_told_so():
    options = StudentOptions("googlenet", {"init_weights": False})
    like = {
        "channels": 3,
        "size": 32,
        "classes": 10,
        "task": "classification",
        "mean": (0.5,),
        "std": (0.5,),
    }
    with pytest.raises(
        EchosetError, match=r"GoogLeNetOutputs while it is trained.*aux_logits=false"
    ):
        build_student(options, like)
    build_student(replace(options, arguments={"init_weights": False, "aux_logits": False}), like)
