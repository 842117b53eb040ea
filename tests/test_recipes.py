"""Recipes beside SSD-KD: named in the manifest, resumable, and for networks without BatchNorm."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from conftest import tiny_options
from stopping import stopped
from torch import nn

from distill.models import Classifier, ModelSpec
from distill.runtime import Runtime
from inversion import SynthesisOptions, load_teacher, plan, synthesize
from inversion.inspection import TeacherNeed
from inversion.options import AdversaryOptions, GeneratorOptions, ReplayOptions
from inversion.recipes import RECIPES, find_recipe
from inversion.recipes.adversarial import Adversarial
from synthesis_kernels.errors import EchosetError

RUN = Runtime(device="cpu", precision="float32", quiet=True)
SMALL = SynthesisOptions(
    recipe="adversarial",
    images=20,
    batch=40,
    calls=3,
    generator=GeneratorOptions(inner_steps=2, width=8, learning_rate=3e-3),
    adversary=AdversaryOptions(steps=2, batch=16),
)


def group_norm_teacher(size=12, classes=3):
    """A small network with GroupNorm that knows bright images from dark and from striped ones."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
    spec = ModelSpec("group-norm", channels=1, size=size, classes=classes, mean=(0.5,), std=(0.3,))
    return Classifier(network, spec).eval().requires_grad_(False)


def test_a_network_without_batch_norm_teaches_by_the_adversarial_recipe(tmp_path):
    teacher = group_norm_teacher()
    made = synthesize(teacher, SMALL, tmp_path / "set", RUN)
    assert made.manifest["method"] == "adversarial"
    assert made.manifest["config"]["recipe"] == "adversarial"
    assert len(made) + sum(made.manifest["short"].values()) == 20
    logits = teacher(made.images.float() / 255)
    assert torch.equal(logits.argmax(1), made.labels)
    with pytest.raises(EchosetError, match=r"synthesis\.recipe adversarial"):
        synthesize(teacher, SynthesisOptions(images=20), tmp_path / "other", RUN)


def test_a_stopped_adversarial_run_goes_on_to_the_same_bytes(tmp_path):
    teacher = group_norm_teacher()
    whole = synthesize(teacher, SMALL, tmp_path / "whole", RUN)
    with stopped():
        synthesize(teacher, SMALL, tmp_path / "stopped", RUN)
    again = synthesize(teacher, SMALL, tmp_path / "stopped", RUN)
    for name in ("images", "labels", "logits", "priority", "round"):
        assert torch.equal(getattr(whole, name), getattr(again, name))


def test_the_adversarial_losses_are_the_published_ones(tmp_path):
    teacher = group_norm_teacher()
    machine = RUN.resolve()
    recipe = Adversarial(teacher, plan(SMALL, 3)[0], SMALL, machine)
    images = torch.rand(4, 1, 12, 12)
    answers = teacher(images)
    loss, _ = recipe._student_loss(images, answers)
    student = recipe.adversary.student
    total = 0.0
    for ours, given in zip(student(images).tolist(), answers.tolist(), strict=True):
        total += sum(abs(a - b) for a, b in zip(ours, given, strict=True))
    assert loss.item() == pytest.approx(total / answers.numel(), rel=1e-5)

    drawn = recipe.painter.draw(recipe.buffer)
    made, wanted = recipe.painter.paint(drawn), drawn[2]
    normalised = (made - teacher.mean) / teacher.std
    assert made.shape == (40, 1, 12, 12) and made.min() >= 0 and made.max() <= 1
    assert abs(normalised.mean().item()) < 0.3 and len(wanted) == 40


def test_the_student_is_not_moved_by_the_generator_nor_the_generator_by_the_student():
    recipe = Adversarial(group_norm_teacher(), plan(SMALL, 3)[0], SMALL, RUN.resolve())
    student = [p.clone() for p in recipe.adversary.student.parameters()]
    generator = [p.clone() for p in recipe.generator.parameters()]
    recipe._generator_step()
    assert all(map(torch.equal, student, recipe.adversary.student.parameters()))
    assert not all(map(torch.equal, generator, recipe.generator.parameters()))
    generator = [p.clone() for p in recipe.generator.parameters()]
    assert math.isfinite(recipe._student_step())
    assert all(map(torch.equal, generator, recipe.generator.parameters()))


def test_fast_datafree_keeps_every_image_and_says_so(tmp_path):
    options = replace(tiny_options(), recipe="fast-datafree")
    made = synthesize(load_teacher(), options, tmp_path / "set", RUN)
    assert made.manifest["method"] == "fast-datafree"
    assert made.manifest["config"]["replay"]["keep_all"]
    assert not made.manifest["config"]["objective"]["phi"]
    assert len(made) == options.calls * options.batch


@pytest.mark.parametrize(
    "change, message",
    [
        ({"replay": ReplayOptions(keep_all=True, balanced_targets=False)}, "keep_all"),
        ({"replay": ReplayOptions(replace_all=True)}, "replace_all"),
        ({"adversary": AdversaryOptions(hints=1.0, views_per_image=1)}, "adversary.hints"),
        ({"recipe": "adversarail"}, "did you mean adversarial"),
    ],
)
def test_what_a_recipe_has_not_is_refused(tmp_path, change, message):
    options = SynthesisOptions(**{"recipe": "adversarial", "images": 20, **change})
    with pytest.raises(EchosetError, match=message):
        synthesize(group_norm_teacher(), options, tmp_path / "set", RUN)
    assert not (tmp_path / "set").exists()


def test_every_recipe_in_the_table_exists():
    for name in RECIPES:
        recipe = find_recipe(name)
        assert recipe.needs in get_args(TeacherNeed)


def test_the_generators_first_update_follows_each_weights_own_gradient():
    recipe = Adversarial(group_norm_teacher(), plan(SMALL, 3)[0], SMALL, RUN.resolve())
    parameters = list(recipe.generator.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    recipe._generator_step()
    for old, new in zip(before, parameters, strict=True):  # Adam's first step, in any layout
        gradient = new.grad
        expected = old - SMALL.generator.learning_rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(new.detach(), expected)
