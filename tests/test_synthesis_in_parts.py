"""Syntheses that have too little memory for their batches."""

import copy
from dataclasses import replace

import pytest
import torch
from many_calls import SYNTHESIS, toy_teacher
from stopping import stopped
from torch import nn

from distill.models.frozen import Frozen
from distill.runtime import Runtime
from inversion import plan, synthesize
from inversion.options import ObjectiveOptions
from inversion.parts.inner import InnerLoop
from inversion.parts.own import Own
from inversion.parts.state import SynthesisState
from synthesis_kernels import backend

QUIET = Runtime(device="cpu", precision="float32", quiet=True)
OPTIONS = replace(SYNTHESIS, calls=4)
ALIKE = ObjectiveOptions(bn=0, classes=2, adversary=1, spread=0, phi=False)
"""Nothing here compares images."""


class Plain(nn.Module):
    """A generator that looks at each latent by itself."""

    def __init__(self, latent):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(latent, 64)

    def forward(self, latent):
        return torch.sigmoid(self.layer(latent)).view(-1, 1, 8, 8)


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(backend, "_said", set())


def lacking_memory(monkeypatch, most):
    """Convolutions that keep no more than so many images for their gradient."""
    usual = nn.Conv2d.forward

    def forward(self, images):
        if torch.is_grad_enabled() and len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return usual(self, images)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)


def brightness(images, logits, wanted):
    return (images.mean((1, 2, 3)) * wanted).mean()


def found_in_parts(count):
    """An inner step's gradients and results, in so many parts."""
    teacher = toy_teacher()
    options = replace(OPTIONS, objective=ALIKE)
    latent = options.generator.latent
    own = Own(generator=Plain(latent))
    device = torch.device("cpu")
    state = SynthesisState(teacher, plan(options, 2)[0], options, device, own=own)
    student = copy.deepcopy(teacher)
    with torch.no_grad():  # decides as the teacher does, and is less sure
        for parameter in list(student.parameters())[-2:]:
            parameter.mul_(0.5)
    terms = {"brightness": (brightness, 3.0)}
    networks = (Frozen(teacher), state.generator, student)
    inner = InnerLoop(*networks, options, 8, torch.float32, 0, terms=terms)
    inner._alone.parts.count = count
    inner.begin(torch.randn(16, latent, generator=torch.Generator().manual_seed(0)), None)
    wanted = torch.arange(16) % 2
    result = inner.run(wanted, wanted, torch.tensor(3), torch.tensor([1, 2]), True)
    gradients = [one.grad for one in (*inner.parameters, inner.noise)]
    return [*gradients, result.class_loss, result.divergence, result.moments, *result.own]


def test_a_step_in_parts_has_the_gradients_and_results_of_the_whole():
    for whole, parts in zip(found_in_parts(1), found_in_parts(4), strict=True):
        assert whole.abs().max() > 0
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", ["ssd-kd", "adversarial"])
def test_a_batch_without_memory_is_made_in_parts(tmp_path, monkeypatch, capsys, recipe):
    options = replace(OPTIONS, recipe=recipe)
    lacking_memory(monkeypatch, most=2)
    made = synthesize(toy_teacher(), options, tmp_path / "whole", QUIET)
    assert len(made) + sum(made.manifest["short"].values()) == 8
    said = capsys.readouterr().err
    # The contest's students learn by the same batch.
    assert said.count("each batch of 16 is computed in 8 parts") == 1
    assert "--synthesis.batch 2" in said
    with stopped():
        synthesize(toy_teacher(), options, tmp_path / "stopped", QUIET)
    again = synthesize(toy_teacher(), options, tmp_path / "stopped", QUIET)
    assert torch.equal(again.images, made.images)
    assert torch.equal(again.logits, made.logits)


def test_shards_abreast_are_made_in_parts(tmp_path, monkeypatch, capsys):
    options = replace(OPTIONS, images=16, shard_images=8, abreast=2)
    lacking_memory(monkeypatch, most=16)  # of two shards' batches of 16
    made = synthesize(toy_teacher(), options, tmp_path, QUIET)
    assert len(made) + sum(made.manifest["short"].values()) == 16
    assert "in 2 parts" in capsys.readouterr().err


def test_the_adversarial_students_batch_is_learnt_in_parts(tmp_path, monkeypatch, capsys):
    adversary = replace(OPTIONS.adversary, batch=48)
    lacking_memory(monkeypatch, most=16)
    synthesize(toy_teacher(), replace(OPTIONS, adversary=adversary), tmp_path, QUIET)
    said = capsys.readouterr().err
    assert "48 is computed in 4 parts" in said and "--synthesis.adversary.batch 12" in said


def test_a_batch_that_cannot_be_smaller_is_an_error(tmp_path, monkeypatch):
    lacking_memory(monkeypatch, most=1)
    with pytest.raises(torch.OutOfMemoryError):
        synthesize(toy_teacher(), OPTIONS, tmp_path, QUIET)
