"""Every loss on its own, against its published formula written out in loops of plain Python."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from distill.methods.attention import attention_loss
from distill.methods.boundary import choose_bases, push_over, soft_loss
from distill.methods.ensemble import ensemble_loss, gated, ramp
from distill.methods.fitnet import fitnet_loss
from distill.methods.fsp import fsp_loss
from distill.methods.hinton import hinton_loss
from distill.methods.hints import hint_loss, hint_loss_reference, mean_hint_loss
from distill.methods.mse import logit_loss
from distill.methods.mutual import mutual_loss
from distill.methods.relational import angle_loss, distance_loss, relational_loss
from distill.methods.shapes import averaged, averaged_reference, same_side
from distill.methods.similarity import similarity_loss

few = settings(max_examples=20)
seeds = st.integers(0, 2**32 - 1)

MAPS = [
    ((3, 2, 4, 4), (3, 5, 4, 4)),
    ((3, 2, 5, 7), (3, 4, 3, 3)),
    ((3, 2, 3, 2), (3, 2, 8, 5)),
    ((2, 3, 6, 2), (2, 3, 4, 5)),
]
ON_EMBEDDINGS = [distance_loss, angle_loss, relational_loss]
ON_PAIRS = {
    "hinton": (lambda student, teacher: hinton_loss(student, teacher, 4.0), (4, 5)),
    "mse": (logit_loss, (4, 5)),
    "soft": (lambda student, teacher: soft_loss(student, teacher), (4, 5)),
    "fitnet": (fitnet_loss, (3, 2, 4, 4)),
    "hints": (hint_loss, (3, 2, 4, 4)),
    "at": (attention_loss, (3, 2, 4, 4)),
    "sp": (similarity_loss, (4, 2, 3, 3)),
    "distance": (distance_loss, (5, 3)),
    "angle": (angle_loss, (5, 3)),
    "relational": (relational_loss, (5, 3)),
}


def grid(*sizes):
    """Every place of a table of these sizes."""
    return product(*map(range, sizes))


def normal(seed, *shapes):
    """Tensors of normal numbers; one alone where there is one shape."""
    source = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=source, dtype=torch.double) for shape in shapes]
    return tensors[0] if len(tensors) == 1 else tensors


def rotation(seed, size):
    return torch.linalg.qr(normal(seed, (size, size)))[0]


def shuffle(seed, size):
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def assert_near(ours, exact, tolerance=1e-9):
    np.testing.assert_allclose(ours.detach().numpy(), exact, rtol=tolerance, atol=tolerance)


def assert_finite_gradient(loss, student, teacher):
    student = student.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(student, teacher), student)
    assert slope.abs().max() < 100


# The formulas


def probabilities(row, temperature):
    powers = [math.exp((value - max(row)) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl(truth, guess, temperature=1.0):
    """KL(truth ‖ guess) of each row of logits, without T²."""
    found = []
    for true_row, guessed_row in zip(truth.tolist(), guess.tolist(), strict=True):
        p, q = probabilities(true_row, temperature), probabilities(guessed_row, temperature)
        found.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return np.array(found)


def pooled(maps, height, width):
    """Every cell the mean of the pixels it touches, from ⌊iH/h⌋ up to ⌈(i+1)H/h⌉."""
    rows, columns = maps.shape[2:]
    cells = np.zeros((*maps.shape[:2], height, width))
    for i, j in product(range(height), range(width)):
        top, bottom = i * rows // height, math.ceil((i + 1) * rows / height)
        left, right = j * columns // width, math.ceil((j + 1) * columns / width)
        pixels = [maps[:, :, y, x] for y in range(top, bottom) for x in range(left, right)]
        cells[:, :, i, j] = sum(pixels) / len(pixels)
    return cells


def one_size(one, two):
    one, two = one.numpy(), two.numpy()
    height, width = min(one.shape[2], two.shape[2]), min(one.shape[3], two.shape[3])
    return pooled(one, height, width), pooled(two, height, width)


def mean_square(one, two):
    return sum((a - b) ** 2 for a, b in zip(one.flat, two.flat, strict=True)) / one.size


def unit_rows(matrix):
    return np.array([row / math.sqrt(sum(value**2 for value in row)) for row in matrix])


def attention_map(maps):
    images, channels, height, width = maps.shape
    looked = np.zeros((images, height * width))
    for image, channel, y, x in np.ndindex(maps.shape):
        looked[image, y * width + x] += maps[image, channel, y, x] ** 2 / channels
    return unit_rows(looked)


def flow_matrix(first, second):
    first, second = one_size(first, second)
    images, _, height, width = first.shape
    flow = np.zeros((images, first.shape[1], second.shape[1]))
    for image, c, d in np.ndindex(flow.shape):
        for y, x in product(range(height), range(width)):
            flow[image, c, d] += first[image, c, y, x] * second[image, d, y, x] / (height * width)
    return flow


def similarity_matrix(features):
    rows = features.numpy().reshape(len(features), -1)
    return unit_rows(
        np.array(
            [[sum(a * b for a, b in zip(one, two, strict=True)) for two in rows] for one in rows]
        )
    )


def smooth(gaps):
    """Smooth L1 with beta 1, averaged."""
    return sum(gap**2 / 2 if abs(gap) < 1 else abs(gap) - 0.5 for gap in gaps) / len(gaps)


def scaled_distances(embedding):
    points = embedding.tolist()
    apart = [[math.dist(one, two) for two in points] for one in points]
    mean = sum(sum(row) for row in apart) / (len(points) * (len(points) - 1))
    return [distance / mean for row in apart for distance in row]


def all_cosines(embedding):
    """At j, between the ways to i and to k."""
    points, found = embedding.numpy(), []
    for j, i, k in product(range(len(points)), repeat=3):
        one, two = points[i] - points[j], points[k] - points[j]
        lengths = math.sqrt(sum(one**2)) * math.sqrt(sum(two**2))
        found.append(sum(one * two) / lengths if lengths else 0.0)
    return found


def distance_formula(student, teacher):
    return smooth(
        [s - t for s, t in zip(scaled_distances(student), scaled_distances(teacher), strict=True)]
    )


def angle_formula(student, teacher):
    return smooth([s - t for s, t in zip(all_cosines(student), all_cosines(teacher), strict=True)])


def slopes(function, point, step=1e-6):
    """Central differences."""
    found = np.zeros(point.shape)
    for place in np.ndindex(point.shape):
        above, below = point.clone(), point.clone()
        above[place] += step
        below[place] -= step
        found[place] = (function(above) - function(below)) / (2 * step)
    return found


# Each loss and its formula


def test_mse_is_the_mean_over_images_and_classes():
    student, teacher = normal(18, (6, 5), (6, 5))
    exact = math.fsum((student[i, k].item() - teacher[i, k].item()) ** 2 for i, k in grid(6, 5))
    assert_near(logit_loss(student, teacher), exact / 30)
    assert logit_loss(teacher, teacher) == 0


def test_gradient_of_mse_is_that_of_finite_differences():
    student, teacher = normal(19, (4, 5), (4, 5))
    leaf = student.clone().requires_grad_()
    logit_loss(leaf, teacher).backward()
    step = 1e-6
    for i, k in grid(4, 5):
        shift = torch.zeros_like(student)
        shift[i, k] = step
        above = logit_loss(student + shift, teacher).item()
        below = logit_loss(student - shift, teacher).item()
        assert_near(leaf.grad[i, k], (above - below) / (2 * step), 1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_hinton_is_kl_times_the_temperature_squared(temperature):
    student, teacher, weights = normal(0, (6, 5), (6, 5), (6,))
    exact = temperature**2 * kl(3 * teacher, 3 * student, temperature)
    assert_near(hinton_loss(3 * student, 3 * teacher, temperature), exact.mean())
    assert_near(
        hinton_loss(3 * student, 3 * teacher, temperature, weights),
        (exact * weights.numpy()).mean(),
    )


@pytest.mark.parametrize("shapes", MAPS)
def test_maps_of_two_sizes_meet_at_the_smaller(shapes):
    maps = normal(1, *shapes)
    for ours, exact in zip(same_side(*maps), one_size(*maps), strict=True):
        assert_near(ours, exact)


@pytest.mark.parametrize(
    "shapes",
    [((3, 2, 4, 4), (3, 2, 4, 4)), ((3, 2, 7, 5), (3, 2, 3, 3)), ((2, 4, 6, 2), (2, 4, 4, 5))],
)
def test_fitnet_is_the_mean_square(shapes):
    student, teacher = normal(2, *shapes)
    assert_near(fitnet_loss(student, teacher), mean_square(*one_size(student, teacher)))


@pytest.mark.parametrize(
    "shapes",
    [((3, 2, 4, 4), (3, 2, 4, 4)), ((3, 2, 7, 5), (3, 2, 3, 3)), ((2, 4, 6, 2), (2, 4, 4, 5))],
)
def test_hints_are_the_share_of_the_variance_left_unexplained(shapes):
    student, teacher = normal(2, *shapes)
    ours, theirs = one_size(student, teacher)
    means = np.stack(
        [np.full_like(theirs[:, c], theirs[:, c].mean()) for c in range(theirs.shape[1])], 1
    )
    assert_near(
        hint_loss(student, teacher), ((ours - theirs) ** 2).sum() / ((theirs - means) ** 2).sum()
    )
    assert_near(hint_loss(7 * student - 3, 7 * teacher - 3), hint_loss(student, teacher))
    assert_near(hint_loss(torch.from_numpy(means), torch.from_numpy(theirs)), 1.0)


def test_a_layer_that_never_changes_gives_no_hints():
    student = normal(4, (3, 2, 4, 4)).requires_grad_()
    for constant in (0.0, 1.0, 1e6):
        loss = hint_loss(student, torch.full((3, 2, 4, 4), constant, dtype=torch.double))
        assert loss == 0 and torch.autograd.grad(loss, student)[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hints_of_all_layers_at_once_are_those_of_each(dtype):
    """Whatever type the teacher's maps are stored in, and whatever their shapes."""
    shapes = [(3, 4, 8, 8), (3, 7, 2, 3), (3, 5, 1, 1)]
    students = [one.float().requires_grad_() for one in normal(5, *shapes)]
    teachers = [one.to(dtype) for one in normal(6, (3, 4, 8, 8), (3, 7, 4, 6), (3, 5, 1, 1))]
    teachers[2] += 300.0
    pairs = list(zip(students, teachers, strict=True))
    ours = mean_hint_loss(pairs)
    exact = sum(hint_loss_reference(one, other.float()) for one, other in pairs) / 3
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=0)
    found = torch.autograd.grad(3 * ours, students)
    for one, other in zip(found, torch.autograd.grad(3 * exact, students), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)


def test_the_gradient_of_hints_is_that_of_finite_differences():
    students = [one.requires_grad_() for one in normal(7, (2, 3, 4, 4), (2, 2, 1, 1))]
    teachers = normal(8, (2, 3, 4, 4), (2, 2, 2, 2))
    loss = lambda *maps: mean_hint_loss(list(zip(maps, teachers, strict=True)))  # noqa: E731
    assert torch.autograd.gradcheck(loss, students)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [(4, 4), (8, 3), (2, 1), (1, 6), (3, 5)])
def test_maps_are_averaged_as_by_definition(dtype, layout, side):
    maps = normal(9, (2, 3, 8, 6))
    maps = maps.to(dtype).contiguous(memory_format=layout).requires_grad_()
    ours, exact = averaged(maps, *side), averaged_reference(maps, *side)
    assert ours.dtype is torch.float32
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)
    weights = torch.rand(ours.shape)
    found, expected = (torch.autograd.grad((y * weights).sum(), maps)[0] for y in (ours, exact))
    assert found.dtype is dtype
    near = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, rtol=near, atol=1e-6)


@pytest.mark.parametrize("shapes", MAPS)
def test_attention_compares_normalised_energy(shapes):
    student, teacher = normal(3, *shapes)
    ours, theirs = one_size(student, teacher)
    assert_near(
        attention_loss(student, teacher), mean_square(attention_map(ours), attention_map(theirs))
    )


@pytest.mark.parametrize("sides", [((4, 4), (4, 4)), ((6, 5), (3, 2)), ((2, 5), (4, 3))])
def test_fsp_compares_flow_matrices(sides):
    first, second = sides
    student = normal(4, (3, 2, *first), (3, 4, *second))
    teacher = normal(5, (3, 2, 4, 4), (3, 4, 2, 2))
    assert_near(
        fsp_loss(student, teacher), mean_square(flow_matrix(*student), flow_matrix(*teacher))
    )


def test_similarity_compares_normalised_grams():
    student, teacher = normal(6, (5, 2, 3, 3), (5, 4, 2, 2))
    assert_near(
        similarity_loss(student, teacher),
        mean_square(similarity_matrix(student), similarity_matrix(teacher)),
    )


@pytest.mark.parametrize(
    "spread", [1.0, 20.0]
)  # with 20, some gaps leave the square part of smooth L1
def test_relational_losses_compare_distances_and_angles(spread):
    student, teacher = normal(7, (6, 3), (6, 4))
    student[0] *= spread
    distance, angle = distance_formula(student, teacher), angle_formula(student, teacher)
    assert_near(distance_loss(student, teacher), distance)
    assert_near(angle_loss(student, teacher), angle)
    assert_near(relational_loss(student, teacher), 25 * distance + 50 * angle)


def test_equal_images_have_no_distance_and_no_angle():
    student, teacher = normal(8, (5, 3), (5, 4))
    student[3] = student[1]
    assert_near(distance_loss(student, teacher), distance_formula(student, teacher))
    assert_near(angle_loss(student, teacher), angle_formula(student, teacher))


def test_soft_loss_is_kl_at_three():
    student, teacher = normal(9, (6, 5), (6, 5))
    assert_near(soft_loss(student, teacher), kl(teacher, student, 3.0))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_peers_learn_from_the_mean_of_the_others(count):
    peers = normal(10, *[(4, 5)] * count)
    exact = sum(
        np.mean([kl(peers[j], peers[i]).mean() for j in range(count) if j != i])
        for i in range(count)
    )
    assert_near(mutual_loss(peers), exact)


@pytest.mark.parametrize("count", [2, 3])
def test_branches_learn_from_their_gated_sum(count):
    *branches, gates = normal(11, *[(4, 5)] * count, (4, count))
    gates = gates.softmax(1)
    ensemble = np.zeros((4, 5))
    for image, label, branch in product(range(4), range(5), range(count)):
        ensemble[image, label] += (
            gates[image, branch].item() * branches[branch][image, label].item()
        )
    assert_near(gated(branches, gates), ensemble)
    assert_near(
        ensemble_loss(branches, gated(branches, gates)),
        sum(9 * kl(ensemble, each, 3.0).mean() for each in branches),
    )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.39, 0.4, 0.41, 1.0])
def test_the_ramp_reaches_one_at_two_fifths(share):
    exact = math.exp(-5 * (1 - min(share / 0.4, 1)) ** 2)
    assert_near(ramp(torch.tensor(share, dtype=torch.double)), exact)
    assert share < 0.4 or exact == 1


# Where they vanish, and their gradients


@pytest.mark.parametrize("name", ON_PAIRS)
def test_nothing_is_lost_at_the_teacher(name):
    loss, shape = ON_PAIRS[name]
    teacher = normal(12, shape)
    student = teacher.clone().requires_grad_()
    assert loss(student, teacher).abs().max() < 1e-15
    (slope,) = torch.autograd.grad(loss(student, teacher).sum(), student)
    assert slope.abs().max() < 1e-12
    assert loss(teacher + normal(13, shape), teacher).min() > 1e-6


def test_nothing_is_lost_where_all_agree():
    first, second, gates = normal(14, (3, 2, 4, 4), (3, 5, 2, 2), (3, 3))
    logits = normal(15, (3, 6))
    assert fsp_loss((first, second), (first.clone(), second.clone())) == 0
    copies = [logits.clone() for _ in range(3)]
    assert abs(mutual_loss(copies)) < 1e-15
    assert abs(ensemble_loss(copies, gated(copies, gates.softmax(1)))) < 1e-14


@pytest.mark.parametrize("name", ON_PAIRS)
def test_gradient_of_a_loss_between_two(name):
    loss, shape = ON_PAIRS[name]
    student, teacher = normal(16, shape, shape)
    assert gradcheck(lambda student: loss(student, teacher), (student.requires_grad_(),))


@pytest.mark.parametrize("loss", [fitnet_loss, hint_loss, attention_loss])
@pytest.mark.parametrize("shapes", [((2, 2, 5, 3), (2, 2, 2, 2)), ((2, 2, 2, 2), (2, 2, 5, 3))])
def test_gradient_goes_through_the_averaging(loss, shapes):
    student, teacher = normal(17, *shapes)
    assert gradcheck(lambda student: loss(student, teacher), (student.requires_grad_(),))


def test_gradient_of_fsp_reaches_both_stages():
    first, second, one, two = normal(18, (2, 2, 4, 4), (2, 3, 2, 2), (2, 2, 4, 4), (2, 3, 2, 2))
    stages = (first.requires_grad_(), second.requires_grad_())
    assert gradcheck(lambda first, second: fsp_loss((first, second), (one, two)), stages)


def test_a_peer_learns_only_as_the_one_who_learns():
    peers = normal(19, *[(3, 4)] * 3)
    leaves = [peer.clone().requires_grad_() for peer in peers]
    found = torch.autograd.grad(mutual_loss(leaves), leaves)
    for i, slope in enumerate(found):
        others = [peer for j, peer in enumerate(peers) if j != i]
        exact = slopes(
            lambda own, others=others: np.mean([kl(other, own).mean() for other in others]),
            peers[i],
        )
        assert_near(slope, exact, 1e-6)


def test_branches_learn_from_the_ensemble_but_not_it_from_them():
    branches, gates = normal(20, (3, 4), (3, 4)), normal(21, (3, 2)).softmax(1).requires_grad_()
    ensemble = gated(branches, gates)
    leaves = [branch.clone().requires_grad_() for branch in branches]
    assert gradcheck(lambda *branches: ensemble_loss(branches, ensemble), leaves)
    (slope,) = torch.autograd.grad(ensemble_loss(leaves, ensemble), gates, allow_unused=True)
    assert slope is None


def test_gradient_of_the_gates():
    first, second, gates = normal(22, (3, 4), (3, 4), (3, 2))
    leaves = [each.requires_grad_() for each in (first, second, gates)]
    assert gradcheck(lambda first, second, gates: gated([first, second], gates), leaves)


@pytest.mark.parametrize("loss", ON_EMBEDDINGS)
@pytest.mark.parametrize("precision", [torch.float, torch.double])
def test_equal_embeddings_keep_the_gradient_finite(loss, precision):
    student, teacher = (each.to(precision) for each in normal(23, (5, 3), (5, 3)))
    student[3] = student[1]
    assert_finite_gradient(loss, student, teacher)
    assert_finite_gradient(loss, student, student)
    assert_finite_gradient(loss, torch.ones_like(student), teacher)


@pytest.mark.parametrize("loss", [attention_loss, similarity_loss])
@pytest.mark.parametrize("precision", [torch.float, torch.double])
def test_zero_features_keep_the_gradient_finite(loss, precision):
    teacher = normal(24, (4, 2, 3, 3)).to(precision)
    assert_finite_gradient(loss, torch.zeros_like(teacher), teacher)
    assert_finite_gradient(loss, teacher, torch.zeros_like(teacher))
    one_dead = teacher.flip(0)
    one_dead[2] = 0
    assert_finite_gradient(loss, one_dead, teacher)


# What they are blind to


@few
@given(seeds, st.floats(0.01, 100), st.floats(0.01, 100))
def test_attention_is_blind_to_scale_and_channel_order(seed, ours, theirs):
    student, teacher = normal(seed, (3, 4, 3, 3), (3, 5, 3, 3))
    changed = attention_loss(
        ours * student[:, shuffle(seed, 4)], theirs * teacher[:, shuffle(seed + 1, 5)]
    )
    assert_near(changed, attention_loss(student, teacher), 1e-8)


@few
@given(seeds)
def test_fsp_is_blind_to_pixel_order(seed):
    first, second, *teacher = normal(seed, (2, 2, 3, 4), (2, 3, 3, 4), (2, 2, 3, 4), (2, 3, 3, 4))
    order = shuffle(seed, 12)
    moved = [maps.flatten(2)[:, :, order].unflatten(2, (3, 4)) for maps in (first, second)]
    assert_near(fsp_loss(moved, teacher), fsp_loss((first, second), teacher), 1e-8)


@few
@given(seeds)
def test_similarity_and_relations_are_blind_to_rotation(seed):
    student, teacher = normal(seed, (5, 6), (5, 4))
    turned = student @ rotation(seed + 1, 6)
    for loss in (similarity_loss, *ON_EMBEDDINGS):
        assert_near(loss(turned, teacher), loss(student, teacher), 1e-8)


@few
@given(seeds, st.floats(0.01, 100))
def test_distances_are_blind_to_shift_and_scale(seed, scale):
    student, teacher, shift = normal(seed, (5, 6), (5, 4), (6,))
    assert_near(
        distance_loss(scale * (student + 3 * shift), teacher), distance_loss(student, teacher), 1e-8
    )


@few
@given(seeds)
def test_divergences_are_blind_to_constants(seed):
    first, second, third, constants = normal(seed, (4, 5), (4, 5), (4, 5), (4, 3))
    peers = [first, second, third]
    raised = [
        logits + 10 * constant[:, None]
        for logits, constant in zip(peers, constants.unbind(1), strict=True)
    ]
    assert_near(hinton_loss(raised[0], raised[1], 4.0), hinton_loss(first, second, 4.0), 1e-8)
    assert_near(mutual_loss(raised), mutual_loss(peers), 1e-8)


# Images pushed over the boundary


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
