"""One generator over several processes: a step of theirs is a step of one process on the whole
batch.
"""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import tiny_options
from teams import Dense, assert_same, doubles, in_team

from distill.models import Classifier, ModelSpec
from distill.models.frozen import Frozen
from distill.options import StudentOptions
from distill.runtime import Machine, Runtime
from inversion import plan
from inversion.driver import check_synthesis
from inversion.options import AdversaryOptions, GeneratorOptions
from inversion.parts.abreast import Abreast, Turns
from inversion.parts.call import begin_call
from inversion.parts.inner import InnerLoop
from inversion.parts.matching import Matching
from inversion.parts.own import NOTHING
from inversion.parts.state import SynthesisState
from inversion.shards import Shard, restore, save
from synthesis_kernels.errors import EchosetError

pytestmark = [pytest.mark.process, pytest.mark.slow]
CPU = torch.device("cpu")


def dense_teacher():
    torch.manual_seed(3)
    spec = ModelSpec("teams.Dense", channels=1, size=12, classes=3, task="segmentation")
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
    adversary=AdversaryOptions(student=StudentOptions("teams.Dense"), steps=2, batch=8),
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
            found += [result.bn, result.likeness, *result.moments, *result.own]
            found += [team.gather(result.class_loss), team.gather(result.divergence)]
        found.append(inner.end(call.wanted, call.targets))
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


def calls(team, teacher, options):
    """Two calls of two shards abreast, with all that follows them: what the shards consist of."""
    with doubles():
        teacher = copy.deepcopy(teacher).double()
        machine = Machine(CPU, torch.float32, "eager").of_team(team)
        jobs = plan(options, teacher.spec.classes)
        shards = [Matching(teacher, job, options, machine) for job in jobs]
        made = Abreast(shards, [Turns(job.seed, CPU) for job in jobs])
        for _ in range(2):
            told = made.step()
        found = []
        for shard, result in zip(shards, told, strict=True):
            state = shard.state
            figures = [result.figures[name] for name in sorted(result.figures)]
            networks = [
                *state.generator.parameters(),
                *state.adversary.trained.state_dict().values(),
            ]
            stored = [state.buffer.priority, state.buffer.answers, state.buffer.images]
            found += [torch.tensor(figures), *networks, *stored, *state.buffer.hints]
        return as_doubles([tensor.detach() for tensor in found])


def test_calls_of_two_processes_are_those_of_one():
    options = replace(
        DENSE,
        images=24,
        shard_images=12,
        abreast=2,
        objective=replace(DENSE.objective, adversary_after=1),
        adversary=replace(DENSE.adversary, views_per_image=3, hints=1.0),
    )
    teacher = dense_teacher()
    (alone,) = in_team(lambda team: calls(team, teacher, options), world=1)
    found = in_team(lambda team: calls(team, teacher, options))
    assert all(map(torch.equal, *found))
    # Muon rounds to float32 at least, and pixels are bytes.
    assert_same(found[0], alone, 1e-3)


def test_a_stopped_run_with_hints_goes_on_in_all_processes(tmp_path):
    adversary = replace(DENSE.adversary, views_per_image=3, hints=1.0)
    options = replace(DENSE, adversary=adversary)
    teacher = dense_teacher()
    job = plan(options, teacher.spec.classes)[0]

    def work(team):
        machine = Machine(CPU, torch.float32, "eager").of_team(team)
        given = (Matching, teacher, options, machine, tmp_path, NOTHING, job)
        first = Shard(*given)
        first.step()
        if team.is_first:
            save([first], "key")
        first.step()
        again = Shard(*given)
        restore([again], "key")
        again.step()
        return [
            [*shard.recipe.state.generator.state_dict().values(), *shard.recipe.state.buffer.hints]
            for shard in (first, again)
        ]

    (one, again), (other, there) = in_team(work)
    for found in (again, other, there):
        assert all(map(torch.equal, one, found))


def test_processes_agree_in_bfloat16(teacher):
    """With kernels of our own; two calls, whose figures are near those of one process."""
    options = tiny_options()

    def work(team):
        machine = Machine(CPU, torch.bfloat16, "eager").of_team(team)
        shard = Matching(teacher, plan(options, 10)[0], options, machine)
        for _ in range(2):
            figures = shard.step().figures
        networks = (shard.state.generator, shard.state.adversary.student)
        weights = [one for network in networks for one in network.state_dict().values()]
        return [*weights, shard.state.buffer.images], figures["bn"]

    (one, bn), (other, _) = in_team(work)
    assert all(map(torch.equal, one, other))
    ((_, alone),) = in_team(work, world=1)
    assert abs(bn - alone) < 0.05 * alone


def test_what_cannot_be_shared_is_refused_with_the_remedy(teacher):
    two = Runtime(rank=0, world=2, device="cpu")
    together = replace(tiny_options(), parallel="together")
    check_synthesis(teacher, together, two)
    with pytest.raises(EchosetError, match=r"synthesis.batch 41 .* set it to 40"):
        check_synthesis(teacher, replace(together, batch=41), two)
    odd = replace(together, adversary=replace(together.adversary, batch=9))
    with pytest.raises(EchosetError, match=r"synthesis.adversary.batch 9 .* set it to 8"):
        check_synthesis(teacher, odd, two)
    other = replace(together, recipe="adversarial")
    with pytest.raises(EchosetError, match=r"adversarial can't share .*\.parallel shards"):
        check_synthesis(teacher, other, two)
