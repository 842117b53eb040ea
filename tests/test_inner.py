"""The generator's steps against their definitions, written out anew."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from distill.models.frozen import Frozen
from inversion import plan
from inversion.options import ObjectiveOptions
from inversion.parts.inner import InnerLoop
from inversion.parts.state import SynthesisState
from inversion.parts.terms import likeness
from synthesis_kernels.moment_target import moment_distance
from synthesis_kernels.views import ViewPlan, views_reference

CPU = torch.device("cpu")


def written_out(generator, noise, wanted, held, average, teacher, adversary, goal):
    """The objective from the definitions of its terms, on networks as they are, and what a step
    tells of it.
    """
    given, layers = (
        [],
        [layer for layer in teacher.modules() if isinstance(layer, torch.nn.BatchNorm2d)],
    )
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, inputs: given.append(inputs[0]))
    images = generator(noise, wanted, wanted)
    seen = views_reference(
        images, torch.arange(40), torch.full((40,), 7), ViewPlan(3), 0
    )  # a tenth of 28 pixels
    logits, guess = teacher(seen), adversary(seen)
    moments = (torch.var_mean(x, (0, 2, 3), correction=0) for x in given)
    variance, mean = (torch.cat(each) for each in zip(*moments, strict=True))
    kept, sizes = goal.bn_momentum, [len(layer.running_mean) for layer in layers]
    blended = [
        (1 - kept) * new + kept * old for new, old in zip((mean, variance), average, strict=True)
    ]
    pieces = zip(blended[0].split(sizes), blended[1].split(sizes), layers, strict=True)
    bn = sum(
        moment_distance(m, v, layer.running_mean, layer.running_var, True) for m, v, layer in pieces
    ) / len(layers)
    log_p, log_q = logits.log_softmax(1), guess.log_softmax(1)
    wrong = -log_p[torch.arange(40), wanted]
    apart = (log_p.exp() * (log_p - log_q)).sum(1) * (logits.argmax(1) == guess.argmax(1))
    fooling = -apart if goal.adversary else torch.zeros(40)
    sure, choice = logits.detach().softmax(1).max(1)
    lacking = 1 - held[choice] / 30
    worth = lacking / lacking.mean() * (1 - sure) ** goal.gamma
    worth = (worth / worth.mean().clamp_min(1e-6)).clamp_max(5) if goal.phi else torch.ones(40)
    alike = likeness(images, wanted)
    loss = (
        goal.bn * bn
        + (worth * (goal.classes * wrong + goal.adversary * fooling)).mean()
        + goal.spread * alike
    )
    return loss, (bn, wrong, fooling, alike, mean, variance)


@pytest.mark.parametrize(
    "change",
    [
        {"bn": 2.0},
        {"classes": 5.0},
        {"classes": 5.0, "phi": True},
        {"adversary": 1.0, "phi": True},
        {"spread": 0.3},
        {"bn": 2.0, "classes": 5.0, "adversary": 1.0, "spread": 0.3, "phi": True},
    ],
    ids=["bn", "classes", "phi", "adversary", "spread", "all"],
)
def test_the_objective_is_the_sum_of_its_terms(teacher, tiny, change):
    nothing = dict.fromkeys(("bn", "classes", "adversary", "spread"), 0.0) | {
        "phi": False,
        "gamma": 1.5,
    }
    options = replace(tiny, objective=ObjectiveOptions(**nothing | change))
    goal, mild = options.objective, deepcopy(teacher)
    for parameter in mild.network.head.parameters():
        parameter.data.mul_(0.3)  # too sure a teacher has hardly a gradient
    milder = deepcopy(mild)
    for parameter in milder.network.head.parameters():
        parameter.data.mul_(0.5)  # decides alike everywhere
    state = SynthesisState(teacher, plan(options, 10)[0], options, CPU)
    wanted, held = torch.arange(40) % 10, torch.arange(10)
    inner = InnerLoop(Frozen(mild), state.generator, milder, options, 30, torch.float32, 0)
    average = inner.target.mean + 0.1, inner.target.variance * 1.1
    generator, noise = deepcopy(state.generator), torch.randn(40, 128, requires_grad=True)
    loss, told = written_out(generator, noise, wanted, held, average, mild, milder, goal)
    exact = torch.cat(
        [slope.flatten() for slope in torch.autograd.grad(loss, [*generator.parameters(), noise])]
    )
    inner.begin(noise.detach(), average)
    result = inner.run(wanted, wanted, torch.tensor(7), held, adversarial=goal.adversary > 0)
    found = torch.cat([parameter.grad.flatten() for parameter in (*inner.parameters, inner.noise)])
    assert (found - exact).norm() < 1e-2 * exact.norm() and exact.norm() > 0
    values = (
        result.bn,
        result.class_loss,
        result.adversarial_loss,
        result.likeness,
        *result.moments,
    )
    for ours, theirs in zip(values, told, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-2, atol=1e-3)


def test_meta_learning_leaves_the_sum_of_one_calls_gradients(teacher, tiny):
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    inner = InnerLoop(
        Frozen(teacher), state.generator, state.adversary.student, tiny, 30, torch.float32, 0
    )
    wanted = torch.arange(40) % 10
    for _ in range(2):
        before = [parameter.detach().clone() for parameter in state.generator.parameters()]
        inner.begin(torch.randn(40, 128), None)
        assert all(map(torch.equal, inner.parameters, before))
        total = [torch.zeros_like(parameter) for parameter in before]
        for number in range(3):
            inner.run(wanted, wanted, torch.tensor(number), torch.zeros(10), adversarial=False)
            torch._foreach_add_(total, [parameter.grad for parameter in inner.parameters])
        inner.end(wanted, wanted)
        for parameter, old, exact in zip(state.generator.parameters(), before, total, strict=True):
            assert torch.equal(parameter, old) and torch.equal(parameter.grad, exact)
        assert {int(moments["step"]) for moments in inner.optimiser.state.values()} == {
            3
        }  # begun anew
        state.meta_optimiser.step()
