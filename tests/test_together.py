"""One generator over several processes: a step of theirs is a step of one process on the whole
batch.
"""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import tiny_options
from teams import assert_same, doubles, in_team
from torch import nn

from distill.models import Classifier, ModelSpec
from distill.models.frozen import Frozen
from distill.options import StudentOptions
from inversion import plan
from inversion.options import AdversaryOptions, GeneratorOptions
from inversion.parts.call import begin_call
from inversion.parts.inner import InnerLoop
from inversion.parts.state import SynthesisState

pytestmark = [pytest.mark.process, pytest.mark.slow]
CPU = torch.device("cpu")


class Dense(nn.Module):
    """A decision for each pixel."""

    def __init__(self, classes=3):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, classes, 1)
        )

    def forward(self, x):
        return self.layers(x)


def dense_teacher():
    torch.manual_seed(3)
    spec = ModelSpec("test_together.Dense", channels=1, size=12, classes=3, task="segmentation")
    teacher = Classifier(Dense(), spec)
    with torch.no_grad():
        for _ in range(3):
            teacher.train()(torch.rand(16, 1, 12, 12))
    return teacher.eval().requires_grad_(False)


DENSE = replace(
    tiny_options(),
    images=12,
    batch=12,
    generator=GeneratorOptions(inner_steps=2, width=8, conditioning=2.0),
    adversary=AdversaryOptions(student=StudentOptions("test_together.Dense"), steps=2, batch=8),
)


def contrast(images, logits, wanted):
    """A term of a user's own, which looks across the batch."""
    return (images.flatten(1).std(0).mean() + logits.square().mean()) * wanted.float().mean()


def steps(team, teacher, options):
    """Two inner steps with everything in them: gradients, what is told, and the images."""
    with doubles():
        teacher = copy.deepcopy(teacher).double()
        job = plan(options, teacher.spec.classes)[0]
        state = SynthesisState(teacher, job, options, CPU)
        state.generator.double()
        student = state.adversary.student.double()
        frozen = Frozen(teacher)
        terms = {"contrast": (contrast, 0.3)}
        rest = (options, 30, torch.float32, 0, "eager", terms, team)
        inner = InnerLoop(frozen, state.generator, student, *rest)
        moments = frozen.with_moments(torch.rand(9, *teacher.spec.shape))[1].detach()
        state.bn_average = tuple(moments)
        state.call = 9  # the adversary counts
        call = begin_call(inner, teacher, state, options)
        found = []
        for step in range(2):
            request = call.request(step)
            result = inner.run(*request.tensors, request.adversarial)
            found += [one.grad.clone() for one in (*inner.parameters, inner.noise)]
            found += [result.bn, result.alike, *result.moments, *result.own]
            found += [team.gather(result.wrong_class), team.gather(result.apart)]
        found.append(inner.end(call.wanted))
        # A bias before a BatchNorm has no gradient but rounding, by which Adam moves it.
        named = dict(inner.clone.named_buffers())
        steady = [name for name in named if not name.endswith("norm.running_mean")]
        return found + [named[name] for name in steady]


def as_doubles(tensors):
    return [tensor.double() for tensor in tensors]


@pytest.mark.parametrize("kind", ["digits", "places", "plain"])
def test_a_step_of_two_processes_is_that_of_one(teacher, kind):
    given = (teacher, tiny_options())
    if kind == "places":
        given = (dense_teacher(), DENSE)
    if kind == "plain":
        options = given[1]
        options = replace(options, generator=replace(options.generator, learning="plain"))
        given = (teacher, replace(options, objective=replace(options.objective, phi=False)))
    (alone,) = in_team(lambda team: as_doubles(steps(team, *given)), world=1)
    found = in_team(lambda team: as_doubles(steps(team, *given)))
    for each in found:
        assert_same(each, alone)
    assert all(map(torch.equal, *found))
