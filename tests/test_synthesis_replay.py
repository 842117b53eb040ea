"""What the buffer asks for, keeps and replaces, and the answers that it banks."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from synthesizing import CPU, store

from distill.models.frozen import Frozen
from distill.options import ViewOptions
from inversion import plan
from inversion.options import (
    ReplayOptions,
)
from inversion.parts.adversary import DrawStep, adversary_steps
from inversion.parts.adversary import view_of as _view
from inversion.parts.buffer import ReplayBuffer
from inversion.parts.call import Store, draw_classes, generator_call
from inversion.parts.inner import InnerLoop
from inversion.parts.state import SynthesisState

REPLAYS = pytest.mark.parametrize(
    "replay",
    [
        ReplayOptions(),
        ReplayOptions(replace_all=True),
        ReplayOptions(keep_all=True, balanced_targets=False),
    ],
    ids=["partial", "all at once", "growing"],
)
MIXED = pytest.mark.parametrize("mixed", [{"cutmix": 1.0}, {"mixup": 1.0}], ids=["cutmix", "mixup"])


def lessons(teacher, options, calls, count, brightest=256):
    """The state after so many calls of `count` random images, and what the adversarial student saw
    and was told.
    """
    state, given, frozen = (
        SynthesisState(teacher, plan(options, 10)[0], options, CPU),
        [],
        Frozen(teacher),
    )

    def step(images, answers, weights, *hints):
        given.append((images, answers, *hints))
        return torch.zeros_like(answers)

    for state.call in range(calls):
        store(
            state, frozen, options, torch.randint(brightest, (count, 1, 28, 28), dtype=torch.uint8)
        )
        adversary_steps(DrawStep(step, frozen, state, options, torch.float32))
    return state, given


@REPLAYS
@pytest.mark.parametrize(
    "mixed", [{}, {"cutmix": 1.0}, {"mixup": 1.0}], ids=["by themselves", "cutmix", "mixup"]
)
def test_banked_answers_are_the_teachers_for_the_very_views_that_are_drawn(
    teacher, tiny, replay, mixed
):
    adversary = replace(tiny.adversary, views_per_image=3)
    options = replace(tiny, replay=replay, adversary=adversary, views=replace(tiny.views, **mixed))
    state, given = lessons(
        teacher, options, calls=8, count=20
    )  # long enough for slots to be taken again
    assert len(given) >= 6 * options.adversary.steps
    for images, answers, *none in given:
        torch.testing.assert_close(answers, teacher(images), rtol=1e-3, atol=1e-3)
        assert not none
    buffer, slots = state.buffer, torch.arange(30)
    views = (
        _view(buffer, buffer.images, slots, torch.full((30,), which), options, state.seed)
        for which in (0, 1)
    )
    first, second = (buffer.seen[:30, which] for which in (0, 1)) if mixed else views
    assert (first != second).flatten(1).any(1)[buffer.filled[:30] & ~buffer.is_held_out[:30]].all()


@REPLAYS
def test_a_mixed_view_is_kept_with_the_image_that_it_shows(teacher, tiny, replay):
    """Half of a pixel's chances are the image's own where the pasted share is uniform; another
    image has the same one in 256.
    """
    still = ViewOptions(rotate=0, scale=0, shift=0, cutmix=1.0)
    adversary = replace(tiny.adversary, views_per_image=3)
    state, _ = lessons(
        teacher, replace(tiny, replay=replay, adversary=adversary, views=still), calls=8, count=20
    )
    buffer = state.buffer
    same = (
        (buffer.seen == buffer.images[:, None])[buffer.filled & ~buffer.is_held_out].float().mean()
    )
    assert 0.35 < same < 0.8


@MIXED
@pytest.mark.parametrize("banked", [0, 2])
def test_what_is_held_out_is_mixed_into_nothing(teacher, tiny, banked, mixed, monkeypatch):
    """Held-out images are white here, all others dark; so is every view."""
    adversary = replace(tiny.adversary, views_per_image=banked, steps=30)
    options, add = (
        replace(tiny, held_out=0.4, views=ViewOptions(**mixed), adversary=adversary),
        ReplayBuffer.add,
    )

    def add_and_paint(buffer, *given):
        taken = add(buffer, *given)
        buffer.images[buffer.is_held_out] = 255
        return taken

    monkeypatch.setattr(ReplayBuffer, "add", add_and_paint)
    _, given = lessons(teacher, options, calls=3, count=40, brightest=100)
    assert 0 < torch.cat([images for images, _ in given]).amax() < 0.4


@REPLAYS
@pytest.mark.parametrize("cutmix", [0.0, 0.5])
def test_hints_are_the_teachers_features_for_the_very_views_that_are_drawn(
    teacher, tiny, replay, cutmix
):
    adversary = replace(tiny.adversary, views_per_image=2, hints=20.0)
    options = replace(
        tiny, replay=replay, adversary=adversary, views=replace(tiny.views, cutmix=cutmix)
    )
    state, given = lessons(teacher, options, calls=8, count=20)
    layers, head = state.learner.teacher_stages.layers, state.learner.teacher_stages.head
    assert len(layers) > 1 and len(given) >= 6 * options.adversary.steps
    looked, seen = copy.deepcopy(teacher), {}
    for name in layers:
        looked.network.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out})
        )
    looked.network.get_submodule(head).register_forward_pre_hook(
        lambda _, inputs: seen.update(head=inputs[0])
    )
    for images, answers, *maps, embedding in given:
        torch.testing.assert_close(answers, looked(images), rtol=1e-3, atol=1e-3)
        side = seen[layers[-1]].shape[-1]
        wanted = [
            seen[name].unflatten(3, (side, -1)).unflatten(2, (side, -1)).mean((3, 5))
            for name in layers
        ]
        for found, exact in zip(
            [*maps, embedding], [*wanted, seen["head"][:, :, None, None]], strict=True
        ):
            torch.testing.assert_close(
                found.float(), exact, rtol=0.02, atol=0.02 * exact.abs().max().item()
            )


def test_balanced_targets_ask_for_what_lacks(teacher, tiny):
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    state.buffer.filled[:-1] = state.buffer.groups[:-1] != 7
    wanted = torch.bincount(draw_classes(state.buffer, tiny, state.random), minlength=10)
    assert wanted[7] == 22 and wanted.sum() == 40  # 2 of the even half and all of the other
    off = replace(tiny, replay=ReplayOptions(balanced_targets=False))
    assert (
        torch.bincount(draw_classes(state.buffer, off, state.random), minlength=10).tolist()
        == [4] * 10
    )


def test_more_classes_than_places_in_a_batch_all_get_their_turn(tiny):
    quotas, random = torch.full((70,), 3), torch.Generator().manual_seed(0)
    buffer = SimpleNamespace(quotas=quotas, classes=70, counts=lambda: quotas)
    for balanced, places in ((True, 20), (False, 40)):
        options = replace(tiny, replay=ReplayOptions(balanced_targets=balanced))
        alike = [draw_classes(buffer, options, random)[:places].tolist() for _ in range(40)]
        assert all(len(set(classes)) == places for classes in alike)
        assert set().union(*alike) == set(range(70))


def test_partial_refresh_against_replacing_everything(teacher, tiny):
    def changed_slots(replay, batch):
        """Feed batches with two images of each class; how many of the 30 slots does each replace
        once the buffer is full?
        """
        options, changes, frozen = replace(tiny, replay=replay), [], Frozen(teacher)
        state = SynthesisState(teacher, plan(options, 10)[0], options, CPU)
        images, logits = (
            torch.zeros(batch, 1, 28, 28, dtype=torch.uint8),
            9 * torch.eye(10)[torch.arange(batch) % 10],
        )
        for state.call in range(1, 9):
            before = state.buffer.round[:-1].clone()
            Store(frozen, state, options, torch.float32)(images, logits, torch.zeros(batch))
            changes.append(int((state.buffer.round[:-1] != before).sum()))
        assert state.buffer.counts().tolist() == [3] * 10
        return changes

    assert changed_slots(ReplayOptions(refresh=0.0), 20) == [20, 10, 0, 0, 0, 0, 0, 0]
    assert changed_slots(ReplayOptions(refresh=0.3), 20) == [
        20,
        20,
        10,
        10,
        10,
        10,
        10,
        10,
    ]  # one of three in each class
    # New images wait until they can replace everything, which takes two calls.
    assert changed_slots(ReplayOptions(replace_all=True), 20)[2:] == [0, 30, 0, 30, 0, 30]


def test_what_waits_to_replace_everything_says_what_is_lacking(teacher, tiny, monkeypatch):
    options, asked, run = replace(tiny, replay=ReplayOptions(replace_all=True)), [], InnerLoop.run
    monkeypatch.setattr(
        InnerLoop, "run", lambda inner, *given: asked.append(given) or run(inner, *given)
    )
    state = SynthesisState(teacher, plan(options, 10)[0], options, CPU)
    state.buffer.filled[:-1], state.staged.filled[:3] = (
        True,
        True,
    )  # of what waits, the first class is complete
    inner = InnerLoop(
        Frozen(teacher), state.generator, state.adversary.student, options, 30, torch.float32, 0
    )
    generator_call(inner, teacher, state, options)
    wanted, _, _, held, _ = asked[0]
    assert held.tolist() == [3] + [0] * 9 and (wanted == 0).sum() == 2  # of the even half alone


@pytest.mark.parametrize("half_life, gone", [(0.0, 1), (10.0, 0)])
def test_age_has_the_say_that_the_options_give_it(teacher, tiny, half_life, gone):
    options = replace(tiny, replay=ReplayOptions(refresh=0.3, half_life=half_life))
    state, frozen = SynthesisState(teacher, plan(options, 10)[0], options, CPU), Frozen(teacher)
    one_each = torch.zeros(10, 1, 28, 28, dtype=torch.uint8)
    for state.call in (0, 10, 20):
        store(state, frozen, options, one_each)
    state.buffer.priority[:-1] = torch.tensor([5.0, 2.6, 4.0]).repeat(
        10
    )  # at call 20 worth 1.25, 1.3 and 4
    store(state, frozen, options, one_each)
    expected = [20 if slot == gone else 10 * slot for slot in range(3)]
    assert state.buffer.round[:-1].view(10, 3).tolist() == [expected] * 10
