"""The generator: its images, and its steps within a call."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from synthesizing import CPU, assert_equal, one_call

from distill.models.frozen import Frozen
from distill.views import to_input
from inversion import plan
from inversion.options import ReplayOptions, TeacherViewOptions
from inversion.parts.call import Store, generator_call
from inversion.parts.generator import Generator
from inversion.parts.inner import InnerLoop
from inversion.parts.state import SynthesisState
from inversion.parts.terms import phi
from synthesis_kernels.backend import kernel_form


def test_native_kernels_and_their_definitions_give_the_same_gradients(teacher, tiny):
    """After Adam's first update only signs would count."""
    found = []
    wanted, number, held = torch.arange(40) % 10, torch.tensor(7), torch.arange(10)
    for form in ("auto", "reference"):
        state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
        frozen = Frozen(teacher)
        inner = InnerLoop(
            frozen, state.generator, state.adversary.student, tiny, 30, torch.float32, 0
        )
        average = inner.target.mean + 0.1, inner.target.variance * 1.1
        inner.begin(torch.randn(40, 128, generator=torch.Generator().manual_seed(0)), average)
        with kernel_form(form):
            result = inner.run(wanted, wanted, number, held, adversarial=True)
        inner.end(wanted, wanted)
        gradient = torch.cat([p.grad.flatten() for p in state.generator.parameters()])
        found.append(
            (gradient, result.bn, result.likeness, result.class_loss, result.mean, result.variance)
        )
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_images_are_those_after_the_last_update(teacher, tiny):
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    inner = InnerLoop(
        Frozen(teacher), state.generator, state.adversary.student, tiny, 30, torch.float32, 0
    )
    wanted = torch.arange(40) % 10
    inner.begin(torch.randn(40, 128, generator=torch.Generator().manual_seed(0)), None)
    for number in range(2):
        before = inner.clone(inner.noise, wanted, wanted)
        inner.run(wanted, wanted, torch.tensor(number), torch.zeros(10), adversarial=False)
    images = inner.end(wanted, wanted)
    assert (
        torch.equal(images, inner.clone(inner.noise, wanted, wanted))
        and (images - before).abs().max() > 0.01
    )


def test_what_an_inner_loop_changes_stays_where_it_is_in_memory(teacher, tiny):
    """A captured step reads and writes fixed addresses, call after call."""
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    student, wanted, held = state.adversary.student, torch.arange(40) % 10, torch.arange(10)
    inner = InnerLoop(Frozen(teacher), state.generator, student, tiny, 30, torch.float32, 0)
    average, places = (inner.target.mean.clone(), inner.target.variance.clone()), []
    for _ in range(2):
        inner.begin(torch.randn(40, 128), average)
        for number in range(3):
            inner.run(wanted, wanted, torch.tensor(number), held, adversarial=True)
        inner.end(wanted, wanted)
        state.meta_optimiser.step()
        frozen = [*inner.teacher.state_dict().values(), *inner.adversary.state_dict().values()]
        tensors = [inner.noise, *inner.average, *inner.parameters, *inner._tensors(), *frozen]
        places.append([tensor.data_ptr() for tensor in tensors])
    assert places[0] == places[1] and len(inner._tensors()) > 3 * len(inner.parameters)


def weights(state):
    return torch.cat([p.detach().flatten() for p in state.generator.parameters()])


@pytest.mark.parametrize(
    "change",
    [
        {"adversary": 0.0},
        {"phi": False},
        {"bn": 0.0},
        {"classes": 0.0},
        {"bn_momentum": 0.0},
        {"spread": 0.0},
        {"views": TeacherViewOptions(shift=0.2)},
    ],
)
def test_each_term_of_the_objective_moves_the_generator(teacher, tiny, change):
    changed = replace(tiny, objective=dataclasses.replace(tiny.objective, **change))
    calls = (
        8 if "adversary" in change else 2
    )  # an untrained student decides as the teacher does nowhere
    assert not torch.equal(
        weights(one_call(teacher, tiny, calls)), weights(one_call(teacher, changed, calls))
    )


def test_without_adversary_its_student_never_reaches_the_generator(teacher, tiny):
    lonely = replace(
        tiny,
        objective=replace(tiny.objective, adversary=0.0, phi=False),
        replay=ReplayOptions(balanced_targets=False),
    )
    other_student = replace(lonely, adversary=replace(lonely.adversary, learning_rate=0.2))
    # The student's training draws from the run's random stream alike, so only its effect could make
    # a difference.
    assert torch.equal(
        weights(one_call(teacher, lonely)), weights(one_call(teacher, other_student))
    )


@pytest.mark.parametrize(
    "channels, size, classes", [(1, 28, 10), (3, 32, 2), (3, 17, 5), (1, 64, 3)]
)
def test_generator_makes_any_square_size(channels, size, classes):
    for blocks in (0, 2):
        generator = Generator(channels, size, classes, latent=16, width=4, blocks=blocks)
        images = generator(torch.randn(3, 16), *(torch.arange(3) % classes,) * 2)
        assert images.shape == (3, channels, size, size) and images.min() >= 0 and images.max() <= 1


def test_blocks_let_one_place_depend_on_another_far_away():
    for blocks, reach in (
        (0, 8),
        (2, 16),
    ):  # rows of the image that the seed's first row reaches, by the convolutions' sizes
        generator = Generator(1, 32, 2, latent=16, width=4, blocks=blocks).eval()
        generator.seed.weight.data.view(8, 8, 8, 16)[:, 1:] = (
            0  # noise reaches the seed's first row only
        )
        with torch.no_grad():
            one, other = (
                generator(torch.randn(4, 16), *(torch.zeros(4).long(),) * 2) for _ in range(2)
            )
        touched = ((one - other).abs().amax((0, 1, 3)) > 0).sum()
        assert touched == reach


def test_a_smooth_seed_map_falls_off_with_frequency_as_asked():
    white, smooth = (
        Generator(3, 32, 10, 64, 32, smooth=power).seed.weight.detach() for power in (0.0, 1.5)
    )
    assert smooth.std() == pytest.approx(white.std().item(), rel=0.01)
    amplitude = (
        torch.fft.fft2(smooth.view(64, 8, 8, 64), dim=(1, 2)).abs().square().mean((0, 3)).sqrt()
    )
    for axis in (amplitude[0], amplitude[:, 0]):
        assert (axis[0] / axis[1]).item() == pytest.approx(
            2**1.5, rel=0.1
        )  # the mean counts as half a period
        assert (axis[1] / axis[4]).item() == pytest.approx(4**1.5, rel=0.1)
        torch.testing.assert_close(axis[1:4], axis[5:].flip(0))


def test_plain_learning_keeps_what_a_call_has_learnt(teacher, tiny):
    plain = replace(tiny, generator=replace(tiny.generator, learning="plain"))
    state = SynthesisState(teacher, plan(plain, 10)[0], plain, CPU)
    inner = InnerLoop(
        Frozen(teacher), state.generator, state.adversary.student, plain, 30, torch.float32, 0
    )
    drawn, wanted = state.generator.seed.weight.clone(), torch.arange(40) % 10
    for call in range(1, 3):
        inner.begin(torch.randn(40, 128), None)
        for number in range(3):
            inner.run(wanted, wanted, torch.tensor(number), torch.zeros(10), adversarial=False)
        inner.end(wanted, wanted)
        for mine, learnt in zip(state.generator.learned(), inner.clone.learned(), strict=True):
            assert torch.equal(mine, learnt)
        assert torch.equal(state.generator.seed.weight, drawn) and not torch.equal(
            inner.clone.seed.weight, drawn
        )
        moments = inner.optimiser.state
        assert moments[inner.clone.image.weight]["step"] == 3 * call  # goes on
        assert (
            moments[inner.noise]["step"] == moments[inner.clone.seed.weight]["step"] == 3
        )  # new noise, and the drawn seed map


def test_a_picture_that_the_seed_map_gives_every_image_does_not_come_through():
    generator, noise, wanted = (
        Generator(3, 32, 5, latent=16, width=4),
        torch.randn(40, 16),
        torch.arange(40) % 5,
    )
    before = generator(noise, wanted, wanted)
    assert (generator(noise + 3 * torch.randn(16), wanted, wanted) - before).abs().max() < 1e-4


def test_the_seed_map_stays_as_it_was_drawn_and_all_else_is_learned(teacher, tiny):
    drawn = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU).generator.state_dict()
    learned = dict(one_call(teacher, tiny).generator.named_parameters())
    assert [name for name, value in learned.items() if torch.equal(value, drawn[name])] == [
        "seed.weight"
    ]


def test_what_a_generator_call_asks_for_and_tells(teacher, tiny, monkeypatch):
    asked, run = [], InnerLoop.run

    def watched(inner, wanted, targets, view, held, adversarial):
        asked.append(
            (
                wanted,
                int(view),
                held.tolist(),
                adversarial,
                run(inner, wanted, targets, view, held, adversarial),
            )
        )
        return asked[-1][-1]

    monkeypatch.setattr(InnerLoop, "run", watched)
    options = replace(tiny, objective=replace(tiny.objective, adversary_after=2, gamma=1.5))
    state, frozen = SynthesisState(teacher, plan(options, 10)[0], options, CPU), Frozen(teacher)
    inner = InnerLoop(
        frozen, state.generator, state.adversary.student, options, 30, torch.float32, 0
    )
    for state.call in range(4):
        asked.clear()
        held = state.buffer.counts()
        images, logits, rank, figures = generator_call(inner, teacher, state, options)
        wanted, found = asked[0][0], asked[-1][-1]
        assert [view for _, view, *_ in asked] == [3 * state.call + step for step in range(3)]
        assert all(
            step[0] is wanted and step[2:4] == (held.tolist(), state.call >= 2) for step in asked
        )
        torch.testing.assert_close(logits, teacher(to_input(images)), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(rank, phi(logits, held, 30, 1.5))
        hit = (logits.argmax(1) == wanted).float().mean()
        means = {"classes": found.class_loss.mean(), "adversary": found.adversarial_loss.mean()}
        assert_equal(figures, {"bn": found.bn, "alike": found.likeness, "hit": hit} | means)
        Store(frozen, state, options, torch.float32)(images, logits, rank)
