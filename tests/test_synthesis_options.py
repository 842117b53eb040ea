"""Which options of a synthesis are refused, and which views the teacher is asked in."""

from dataclasses import replace

import pytest
import torch
from synthesizing import CPU, make

from distill import load_images
from distill.models import Classifier, ModelSpec
from distill.models.frozen import Frozen
from distill.options import StudentOptions
from distill.students import build_student
from inversion import MNIST_SLICE, plan
from inversion.cli.schema import DemoRun
from inversion.cli.verbs.demo import check_demo
from inversion.options import (
    AdversaryOptions,
    GeneratorOptions,
    ObjectiveOptions,
    ReplayOptions,
    TeacherOptions,
    TeacherViewOptions,
)
from inversion.parts.inner import InnerLoop
from inversion.parts.state import SynthesisState
from inversion.teacher import load_teacher, trained_views
from synthesis_kernels.errors import EchosetError


def test_views_before_the_teacher_are_those_it_was_trained_on(teacher):
    def told(**views):
        return trained_views(replace(teacher.spec, notes={"views": views}))

    assert trained_views(load_teacher(TeacherOptions("cifar10")).spec) == TeacherViewOptions(
        0.125, True, 0.25
    )
    assert trained_views(teacher.spec) == TeacherViewOptions(
        shift=0.1
    )  # the bundled teacher's recipe: rotations are left out
    assert told(shift=0.125, flip=True, cutout=0.25, cutmix=1.0, rotate=0) == TeacherViewOptions(
        0.125, True, 0.25
    )
    assert told() == TeacherViewOptions(shift=0)
    assert trained_views(replace(teacher.spec, notes={})) == TeacherViewOptions()
    for name, value in (
        ("shift", 3),
        ("shift", "far"),
        ("cutout", float("nan")),
        ("cutout", True),
        ("flip", "yes"),
    ):
        with pytest.raises(
            EchosetError, match=f"notes on its views: {name} must .*--synthesis.objective.views"
        ):
            told(**{name: value})


def test_a_demo_refuses_bad_notes_before_it_deletes_anything_unless_told_better(teacher):
    odd = Classifier(teacher.network, replace(teacher.spec, notes={"views": {"shift": 3}})).eval()
    run, data, student = (
        DemoRun(),
        load_images(MNIST_SLICE),
        build_student(DemoRun().student, teacher.contract),
    )
    with pytest.raises(EchosetError, match="notes on its views: shift must lie in"):
        check_demo(run, odd, student, data)
    told = replace(run.synthesis, objective=ObjectiveOptions(views=TeacherViewOptions()))
    check_demo(replace(run, synthesis=told), odd, student, data)


def test_the_teacher_sees_each_image_in_a_view_of_its_own(teacher, tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(
        Frozen,
        "prepare",
        lambda self, x, whole=Frozen.prepare: seen.append(x) or whole(self, x),
    )
    options = replace(
        tiny, objective=replace(tiny.objective, views=TeacherViewOptions(shift=0.25, cutout=0.25))
    )
    state = SynthesisState(teacher, plan(options, 10)[0], options, CPU)
    inner = InnerLoop(
        Frozen(teacher), state.generator, state.adversary.student, options, 30, torch.float32, 0
    )
    inner.begin(torch.zeros(40, 128), None)
    for number in (0, 0, 1):
        inner.clone.load_state_dict(inner.generator.state_dict())
        inner.noise.data.zero_()
        inner.run(
            torch.zeros(40, dtype=torch.long),
            torch.zeros(40, dtype=torch.long),
            torch.tensor(number),
            torch.zeros(10),
            adversarial=False,
        )
    # One and the same image forty times over (same noise, same class): only the view tells them
    # apart.
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert len(seen[0].flatten(1).unique(dim=0)) > 30
    black = (seen[0] == 0).float().mean((1, 2, 3))
    assert black.min() > 0 and black.max() < 0.5  # from outside and from the square


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda: {"images": 0}, "images"),
        (lambda: {"batch": 1}, "batch"),
        (lambda: {"calls": 0}, "calls"),
        (lambda: {"held_out": 1.0}, "held_out"),
        (lambda: {"generator": GeneratorOptions(inner_steps=0)}, "inner_steps"),
        (lambda: {"generator": GeneratorOptions(blocks=-1)}, "generator.blocks"),
        (lambda: {"generator": GeneratorOptions(smooth=float("nan"))}, "generator.smooth"),
        (lambda: {"replay": ReplayOptions(refresh=2.0)}, "refresh"),
        (lambda: {"replay": ReplayOptions(half_life=float("inf"))}, "half_life"),
        (lambda: {"replay": ReplayOptions(beta=1.5)}, "beta"),
        (lambda: {"objective": ObjectiveOptions(bn_momentum=1.0)}, "bn_momentum"),
        (lambda: {"objective": ObjectiveOptions(gamma=-1.0)}, "gamma"),
        (
            lambda: {"objective": ObjectiveOptions(views=TeacherViewOptions(shift=3))},
            r"shift must lie in \[0, 0\.5\], got 3",
        ),
        (
            lambda: {"adversary": AdversaryOptions(hints=-1)},
            "adversary.hints must be a number of at least 0",
        ),
        (
            lambda: {"adversary": AdversaryOptions(hints=20)},
            "hints are kept for the views in adversary.views_per_image, which is 0",
        ),
        (lambda: {"adversary": AdversaryOptions(views_per_image=-1)}, "adversary.views_per_image"),
        (
            lambda: {"adversary": AdversaryOptions(begins=1)},
            "adversary_after 1 would ask an adversarial student that has learnt nothing",
        ),
        (
            lambda: {"adversary": AdversaryOptions(begins=14)},
            "begins 14 leaves the adversarial student nothing to learn in 14 calls",
        ),
        (
            lambda: {"adversary": AdversaryOptions(student=StudentOptions(weights="none.pt"))},
            "no weights file at none.pt",
        ),
    ],
)
def test_options_out_of_range_are_named(teacher, tiny, tmp_path, change, message):
    with pytest.raises(EchosetError, match=message):
        make(teacher, replace(tiny, **change()), tmp_path / "set")


def test_hints_that_cannot_be_had_are_refused_before_the_folder_is_claimed(teacher, tiny, tmp_path):
    options = replace(tiny, adversary=replace(tiny.adversary, views_per_image=2, hints=20.0))

    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = torch.nn.BatchNorm1d(784), torch.nn.Linear(784, 10)
            self.norm.running_mean.fill_(0.1)

        def forward(self, images):
            return self.head(self.norm(images.flatten(1)))

    flat = Classifier(
        Flat(), ModelSpec("flat", channels=1, size=28, classes=10, mean=(0.1307,), std=(0.3081,))
    )
    with pytest.raises(EchosetError, match=r"adversary\.hints: no layer of flat gives maps"):
        make(flat, options, tmp_path / "set")
    assert not (tmp_path / "set").exists()
