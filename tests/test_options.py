"""Options check themselves, whoever makes them, and name what is wrong."""

import math

import pytest

from distill import DistillOptions, StudyOptions, ViewOptions
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
