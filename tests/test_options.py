"""Options check themselves, whoever makes them, and name what is wrong."""

import math

import pytest

from distill import DistillOptions, StudentOptions, StudyOptions, ViewOptions
from inversion import CollectOptions, ScoreOptions
from inversion.options import AdversaryOptions, BoundaryOptions
from synthesis_kernels.errors import EchosetError


@pytest.mark.parametrize(
    ("options", "change", "says"),
    [
        (ViewOptions, {"operations": -1}, "operations must be a number of at least 0, got -1"),
        (ViewOptions, {"cutout": 1.0}, "cutout is a part of the image's side"),
        (DistillOptions, {"temperature": 0.0}, "temperature must be above 0 and finite, got 0"),
        (DistillOptions, {"temperature": math.inf}, "temperature must be above 0 and finite"),
        (DistillOptions, {"learning_rate": math.nan}, "learning_rate must be a number of"),
        (DistillOptions, {"batch": 1}, "batch must be at least 2, got 1"),
        (DistillOptions, {"ema": 1.0}, "ema must lie in"),
        (StudyOptions, {"images": -1}, "images must be a number of at least 0"),
        (AdversaryOptions, {"temperature": math.nan}, "adversary.temperature must be above 0"),
        (BoundaryOptions, {"growth": 0.5}, "boundary.growth must be at least 1, got 0.5"),
        (CollectOptions, {"shard_images": 0}, "collection.shard_images must be at least 1"),
        (CollectOptions, {"balanced": False, "short": ("draw",)}, "fills classes that are short"),
        (ScoreOptions, {"gradients": 0}, "scores.gradients must be at least 1, got 0"),
        (ScoreOptions, {"compared": 9}, "scores.compared must be at least 10, got 9"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, change, says):
    with pytest.raises(EchosetError) as refusal:
        options(**change)
    assert says in str(refusal.value)


def test_an_unbalanced_collection_may_leave_its_ways_alone_or_name_none():
    assert CollectOptions(balanced=False).short == ("push",)
    assert CollectOptions(balanced=False, short=()).short == ()


def test_a_name_or_a_number_in_the_place_of_options_is_told(tmp_path):
    from distill import build_student, distill, load_images
    from inversion import MNIST_SLICE, collect, load_teacher, synthesize

    teacher = load_teacher()
    data = load_images(MNIST_SLICE)
    student = build_student(StudentOptions(model="lenet5"), teacher.contract)
    wrong = {
        "options must be TeacherOptions(model='convnet-32'), got a str": lambda: load_teacher(
            "convnet-32"
        ),
        "options must be StudentOptions(model='lenet5'), got a str": lambda: build_student(
            "lenet5", teacher.contract
        ),
        "options must be DistillOptions(…), got a dict": lambda: distill(
            student, data, teacher, {"steps": 2}
        ),
        "options must be SynthesisOptions(…), got a PosixPath": lambda: synthesize(
            teacher, tmp_path / "set"
        ),
        "runtime must be Runtime(…), got a int": lambda: synthesize(
            teacher, out=tmp_path / "set", runtime=0
        ),
        "options must be CollectOptions(…), got a str": lambda: collect(
            teacher, ["shaders"], "runs/set"
        ),
    }
    for message, call in wrong.items():
        with pytest.raises(EchosetError) as told:
            call()
        assert str(told.value) == message
