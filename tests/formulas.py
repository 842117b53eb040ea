"""Published formulas of the losses, written out in loops of plain Python."""

import math
from itertools import product

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

few = settings(max_examples=20)
seeds = st.integers(0, 2**32 - 1)


def grid(*sizes):
    """Every place of a table of these sizes."""
    return product(*map(range, sizes))


def normal(seed, *shapes):
    """Tensors of normal numbers; one alone where there is one shape."""
    source = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=source, dtype=torch.double) for shape in shapes]
    return tensors[0] if len(tensors) == 1 else tensors


def assert_near(ours, exact, tolerance=1e-9):
    np.testing.assert_allclose(ours.detach().numpy(), exact, rtol=tolerance, atol=tolerance)


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
