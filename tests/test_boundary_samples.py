"""Images pushed over the boundary: the published step, who is pushed, and where to."""

import math

import numpy as np
import pytest
import torch
from formulas import assert_near, few, kl, normal, probabilities, seeds
from hypothesis import given
from hypothesis import strategies as st

from distill.methods.boundary import choose_bases, push_over


def linear(seed, images=8, labels=4):
    """A linear network of 2×2×3 pixels, images, where they are, and where they shall go."""
    matrix, bias, images = normal(seed, (labels, 12), (labels,), (images, 2, 2, 3))
    base = (images.flatten(1) @ matrix.T + bias).argmax(1)
    return matrix, bias, images, base, (base + 1 + torch.arange(len(base)) % (labels - 1)) % labels


def pushed_formula(matrix, bias, image, base, target, unit, steps):
    x = image.flatten().numpy().copy()
    slope = matrix[target].numpy() - matrix[base].numpy()
    for _ in range(steps):
        gap = sum(slope * x) + bias[target].item() - bias[base].item()
        if gap > 0:
            break
        x += 0.3 * unit * (-gap + 1e-4) * slope / math.sqrt(sum(slope**2))
    return x.reshape(image.shape)


@pytest.mark.parametrize("steps", [0, 1, 2, 10])
@pytest.mark.parametrize("unit", [1.0, 0.25])
def test_a_push_is_the_published_step(steps, unit):
    matrix, bias, images, base, target = linear(25)
    base[0], target[0] = target[0].clone(), base[0].clone()  # one that is over already, and stays
    before = images.clone()
    pushed, _ = push_over(
        lambda x: x.flatten(1) @ matrix.T + bias, images, base, target, unit, steps
    )
    everything = zip(images, base, target, strict=True)
    exact = np.stack([pushed_formula(matrix, bias, *each, unit, steps) for each in everything])
    assert_near(pushed, exact, 1e-6)
    assert pushed[0].equal(images[0]) and images.equal(before)


@few
@given(seeds)
def test_pushed_images_cross_and_stay(seed):
    matrix, bias, images, base, target = linear(seed)

    def network(x):
        return (x.flatten(1) @ matrix.T + bias).tanh()

    short, long = (push_over(network, images, base, target, 1.0, steps) for steps in (3, 15))
    for pushed, crossed in (short, long):
        logits = network(pushed).float()  # as they are compared inside
        assert crossed.equal(
            (logits.gather(1, target[:, None]) > logits.gather(1, base[:, None]))[:, 0]
        )
        assert not pushed.requires_grad
    assert long[0][short[1]].equal(short[0][short[1]])
    assert (short[1] <= long[1]).all()


def test_most_pushed_images_cross_in_the_published_ten_steps():
    matrix, bias, images, base, target = linear(26, images=40)
    _, crossed = push_over(lambda x: x.flatten(1) @ matrix.T + bias, images, base, target)
    assert crossed.float().mean() > 0.9


def lesson(seed, images=12, labels=4):
    """Logits of both, and labels that they know often, but not always."""
    student, teacher, noise = normal(seed, (images, labels), (images, labels), (images, labels))
    return teacher + student, teacher, (teacher + noise / 2).argmax(1)


def known_images(student, teacher, labels):
    """Those that both know, from the most disputed to the least."""
    apart = kl(teacher, student, 3.0)
    rows = zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True)
    known = [
        place
        for place, (s, t, label) in enumerate(rows)
        if s.index(max(s)) == label == t.index(max(t))
    ]
    return sorted(known, key=lambda place: -apart[place])


def drawn_class(row, label, draw):
    """Where the draw falls on the line of the other classes' chances."""
    chances = probabilities(row, 3.0)
    total, passed = sum(chance for other, chance in enumerate(chances) if other != label), 0.0
    for other, chance in enumerate(chances):
        passed += chance * (other != label)
        if other != label and draw * total < passed:
            return other
    raise AssertionError("a draw below 1 falls somewhere")


@few
@given(seeds, st.integers(1, 12))
def test_the_most_disputed_known_images_are_chosen(seed, count):
    student, teacher, labels = lesson(seed)
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    chosen, target, fit = choose_bases(student, teacher, labels, count, draws)
    known = known_images(student, teacher, labels)[:count]
    assert chosen[: len(known)].tolist() == known
    assert fit.tolist() == [True] * len(known) + [False] * (count - len(known))
    assert len(set(chosen.tolist())) == count
    assert (target != labels[chosen]).all()


@few
@given(seeds)
def test_targets_are_drawn_by_the_teachers_chances(seed):
    student, teacher, labels = lesson(seed)
    draws = torch.rand(12, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    chosen, target, _ = choose_bases(student, teacher, labels, 12, draws)
    places = zip(chosen.tolist(), draws.tolist(), strict=True)
    assert target.tolist() == [
        drawn_class(teacher[place].tolist(), labels[place].item(), draw) for place, draw in places
    ]


@pytest.mark.parametrize("label", range(4))
@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("precision", [torch.float, torch.double])
def test_no_draw_gives_the_label(label, draw, precision):
    logits = torch.zeros(200, 4, dtype=precision)
    logits[:, label] = torch.linspace(
        0.1, 4000, 200, dtype=precision
    )  # up to a teacher that gives the others no chance
    labels = torch.full((200,), label)
    _, target, fit = choose_bases(logits, logits, labels, 200, torch.full((200,), draw))
    assert fit.all() and (target != label).all() and target.min() >= 0 and target.max() < 4
