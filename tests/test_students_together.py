"""A student that several processes teach together is the student of one process."""

import copy
from dataclasses import replace

import pytest
import torch
from teams import SOLO, Dense, assert_same, doubles, in_team
from torch import nn

from distill import distill
from distill.data.images import Images
from distill.models import Classifier, ModelSpec
from distill.options import DistillOptions, ViewOptions
from distill.runtime import Runtime
from distill.tasks.places import VOID
from distill.team import Team
from distill.team_layers import TeamNorm
from synthesis_kernels.errors import EchosetError

pytestmark = [pytest.mark.process, pytest.mark.slow]
STEPS = 20
USUAL = DistillOptions(
    steps=STEPS,
    batch=8,
    optimiser="sgd",
    learning_rate=0.02,
    views_per_image=0,
    views=ViewOptions(shift=0.1, mixup=0.5),
)


class Small(nn.Module):
    """Two stages with what looks across a batch."""

    def __init__(self, classes=4, width=6):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.AvgPool2d(2)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.drop(self.second(self.pool(self.first(x))).mean((2, 3))))


def network(seed):
    torch.manual_seed(seed)
    return Classifier(
        Small(), ModelSpec("test_students_together.Small", channels=1, size=12, classes=4)
    )


def pictures():
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 1, 12, 12), dtype=torch.uint8, generator=random)
    return Images(images, torch.arange(24) % 4, "pictures")


def apart(batch):
    """A loss of a user's own, which looks across the batch."""
    return (batch.logits.std(0) - batch.answers.std(0)).square().sum()


def taught(team, options, losses=None):
    """The student's weights and statistics, and what is told of it."""
    with doubles():
        teacher = network(1).double()
        student = network(2).double()
        with torch.no_grad():
            teacher.train()(torch.rand(64, 1, 12, 12))
        runtime = Runtime(device="cpu", precision="float32", quiet=True)
        given = (student, pictures(), teacher, options)
        result = distill(*given, runtime=runtime, losses=losses, team=team)
        kinds = {type(layer) for layer in student.modules()}
        assert nn.BatchNorm2d in kinds and TeamNorm not in kinds  # as it came
        return [*student.state_dict().values(), torch.tensor(result.agreement)]


def check(options, losses=None):
    (alone,) = in_team(lambda team: taught(team, options, losses), world=1)
    found = in_team(lambda team: taught(team, options, losses))
    assert all(map(torch.equal, *found))
    assert_same([one.double() for one in found[0]], [one.double() for one in alone])


LESSONS = {
    "hinton": {},
    "labels": {"loss": {"labels": 1.0, "mse": 0.1}, "labels": "data", "ema": 0.9},
    "across": {"loss": {"sp": 10.0, "rkd": 1.0, "hints": 1.0}},
    "maps": {"loss": {"at": 10.0, "fitnet": 1.0, "fsp": 1.0}},
    "branches": {"loss": {"one": 1.0}, "labels": "data"},
    "peers": {"loss": {"dml": 1.0}, "labels": "data"},
    "beforehand": {"views_per_image": 2, "patience": 5, "held_out": 0.2},
    "hints": {"loss": {"hints": 1.0, "hinton": 1.0}, "views_per_image": 2},
}


@pytest.mark.parametrize("lesson", LESSONS)
def test_two_processes_teach_the_student_of_one(lesson):
    check(replace(USUAL, **LESSONS[lesson]))


def test_a_loss_of_ones_own_sees_the_whole_batch():
    check(USUAL, {"hinton": 1.0, apart: 0.5})


def test_what_cannot_be_shared_is_refused_with_the_remedy():
    team = Team(0, 2)
    lesson = (network(2), pictures(), copy.deepcopy(network(1)))
    with pytest.raises(EchosetError, match=r"distillation.batch 9 .* set it to 8$"):
        distill(*lesson, replace(USUAL, batch=9), team=team)
    with pytest.raises(EchosetError, match=r"loss bss chooses images .* use one process"):
        distill(*lesson, replace(USUAL, loss={"bss": 1.0}), team=team)
    with pytest.raises(EchosetError, match="take eager steps"):
        Runtime(device="cpu").resolve().of_team(SOLO)  # alone it is fine
        replace(Runtime(device="cpu").resolve(), step="graph").of_team(team)


def test_label_maps_are_learnt_together(monkeypatch):
    spec = ModelSpec("dense", channels=1, size=12, classes=3, task="segmentation")
    monkeypatch.setattr("test_students_together.network", lambda seed: dense(seed, spec))
    check(replace(USUAL, views=ViewOptions(), loss={"labels": 1.0, "hinton": 1.0}))


def test_what_is_void_counts_in_no_figure_of_a_team(monkeypatch):
    spec = ModelSpec("dense", channels=1, size=12, classes=3, task="segmentation")
    images = pictures()
    labels = (images.images[:, 0] % 3).long()
    labels[torch.arange(12) < torch.arange(24)[:, None] // 2] = VOID  # from nothing to almost all
    roads = Images(images.images, labels, "roads")
    monkeypatch.setattr("test_students_together.network", lambda seed: dense(seed, spec))
    monkeypatch.setattr("test_students_together.pictures", lambda: roads)
    check(replace(USUAL, views=ViewOptions(), loss={"labels": 1.0}, labels="data"))


def dense(seed, spec):
    torch.manual_seed(seed)
    return Classifier(Dense(), spec)


@pytest.mark.parametrize("loss", [{"hinton": 1.0}, {"sp": 10.0, "hints": 1.0, "at": 1.0}])
def test_processes_agree_in_bfloat16(loss):
    """Shadows of the weights, kernels of our own, and maps in bfloat16 that are gathered."""
    given = (pictures(), network(1).eval(), replace(USUAL, loss=loss, steps=4, learning_rate=1e-4))

    def work(team):
        student = network(2)
        runtime = Runtime(device="cpu", precision="bfloat16", quiet=True)
        distill(student, *given, runtime=runtime, team=team)
        return list(student.state_dict().values())

    one, other = in_team(work)
    assert all(map(torch.equal, one, other))
    (alone,) = in_team(work, world=1)
    assert_same([a.double() for a in one], [a.double() for a in alone], 0.05)
