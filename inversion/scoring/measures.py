"""Figures that say what is in a set, as functions of tensors: of the teacher's answers, of
features, of pixels.

Sums run in float64 and over parts of the set, so that memory grows with the set and not with its
square.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.loop import StepProgress
from inversion.scoring.scores import MOST_VALUES, NEAR

PART = 2000
"""Rows that are held in float64 at once."""
HELD_OUT = 0.2
"""Part of the set that readouts are judged on."""
DOUBLINGS = 3
"""Readouts learn from 1/8, 1/4, 1/2 and all of the rest."""
RIDGE = 1e-3
"""Of the readout, as a part of the mean variance of its inputs."""
FILTERS = 64
"""Of the readout's random convolution."""
FILTER_SIDE = 5
"""Of each filter, in pixels."""
GRID = 4
"""Side of the grid that the filters' answers are averaged on."""


def entropy(weights: Tensor) -> float:  # (N,), not negative
    """H of the weights' shares, in nats; 0 where there is no weight at all."""
    shares = weights.double() / weights.double().sum().clamp_min(1e-300)
    return max(0.0, -torch.special.xlogy(shares, shares).sum().item())


def coverage(counts: Tensor) -> float:  # (K,)
    """η = H(counts)/log K."""
    return entropy(counts) / math.log(len(counts))


def soft_coverage(
    answers: Tensor,  # (N, K) softmax, float64
    entropies: Tensor | None = None,  # of each decision, where an answer is the mean of several
) -> tuple[float, float]:
    """H(mean p)/log K, and the mutual information of image and class (H(mean p) − E H(p))/log K."""
    balance = coverage(answers.mean(0))
    if entropies is None:
        entropies = answer_entropies(answers)
    mean_entropy = entropies.mean().item()
    spread = mean_entropy / math.log(answers.shape[1])
    return balance, max(0.0, balance - spread)


def answer_entropies(answers: Tensor) -> Tensor:  # (N, K, *places) softmax -> (N, *places)
    """H of each answer, in nats."""
    return -torch.special.xlogy(answers, answers).sum(1)


def count_pairs(first: Tensor, second: Tensor, classes: int) -> Tensor:  # (N,), (N,) -> (K²,)
    """How often each pair occurs."""
    return torch.bincount(first * classes + second, minlength=classes**2)


def spread_of_pairs(counts: Tensor, classes: int) -> tuple[float, float]:  # (K²,)
    """The share of pairs of two classes that occurs, and exp(H)/K(K−1)."""
    possible = classes * (classes - 1)
    return (counts > 0).sum().item() / possible, math.exp(entropy(counts)) / possible


def effective_rank(features: Tensor) -> float:  # (N, D)
    """exp of the entropy of the covariance's normalised eigenvalues (Roy & Vetterli 2007); 1 where
    nothing varies.
    """
    centre = _mean(features)
    return _effective_number(features, lambda rows: rows.double() - centre)


def shared_layout(flat: Tensor) -> float:  # (N, D)
    """Contrast of the mean image over the root mean square contrast of an image; 0 where no image
    has any.
    """
    contrast = torch.zeros((), dtype=torch.double, device=flat.device)
    for part in flat.split(PART):
        contrast = contrast + part.double().var(1, correction=0).sum()
    contrast = contrast / len(flat)
    if not contrast > 0:
        return 0.0
    return min((_mean(flat).var(correction=0) / contrast).sqrt().item(), 1.0)


def _mean(rows: Tensor) -> Tensor:  # (N, D) -> (D,) float64
    total = torch.zeros(rows.shape[1], dtype=torch.double, device=rows.device)
    for part in rows.split(PART):
        total = total + part.double().sum(0)
    return total / len(rows)


def vendi(features: Tensor) -> float:  # (N, D)
    """The Vendi score of the cosine kernel (Friedman & Dieng 2023): exp of the entropy of the
    eigenvalues of K/N.
    """
    # K/N = X·Xᵀ/N has the non-zero eigenvalues of Xᵀ·X/N, so the kernel itself need not be built.
    return _effective_number(features, lambda rows: F.normalize(rows.double(), dim=1))


def _effective_number(features: Tensor, prepare: Callable[[Tensor], Tensor]) -> float:
    """exp of the entropy of the prepared rows' squared singular values."""
    count, width = features.shape
    if count < width:
        rows = prepare(features)
        gram = rows @ rows.T
    else:
        gram = torch.zeros(width, width, dtype=torch.double, device=features.device)
        for part in features.split(PART):
            rows = prepare(part)
            gram = gram + rows.T @ rows
    values = torch.linalg.eigvalsh(gram).clamp_min(0)
    # What is smaller than this, beside the features themselves, is rounding.
    varied = values.sum() > 1e-20 * features.square().sum(dtype=torch.double)
    return math.exp(entropy(values)) if varied else 1.0


def within_classes(
    measure: Callable[[Tensor], float],
    features: Tensor,  # (N, D)
    chosen: Tensor,  # (N,)
    classes: int,
) -> float:
    """The mean of a measure over all classes, one without images counting 0."""
    total = 0.0
    for label in range(classes):
        of_class = features[chosen == label]
        if len(of_class):
            total += measure(of_class)
    return total / classes


def shrink(images: Tensor) -> Tensor:  # (N, C, H, W) in [0, 1] -> (N, C, h, w)
    """The images averaged down to at most `MOST_VALUES` values, as many along each side; smaller
    ones as they are, and so their smaller sides.
    """
    channels, height, width = images.shape[1:]
    side = math.isqrt(MOST_VALUES // channels)
    if images[0].numel() <= channels * side**2:
        return images
    return F.adaptive_avg_pool2d(images, (min(side, height), min(side, width)))


def duplicate_rate(
    flat: Tensor, count: int, chunk: int = 1000, quiet: bool = True
) -> float:  # (N, D) in [0, 1]
    """Share of the first `count` images that lie within `NEAR` of another image of the set."""
    flat = flat - flat.mean(0)
    squares = flat.square().sum(1)
    limit = NEAR**2 * flat.shape[1]
    duplicates = 0
    with StepProgress("looking for duplicates", count, quiet) as progress:
        for start in range(0, count, chunk):
            rows = slice(start, min(start + chunk, count))
            apart = torch.addmm(squares[None], flat[rows], flat.T, alpha=-2)
            apart.add_(squares[rows, None])
            apart.diagonal(start).fill_(torch.inf)  # an image is not its own duplicate
            duplicates += int((apart.amin(1) <= limit).sum())
            progress.update(rows.stop)
    return duplicates / count


def random_features(images: Tensor, chunk: int = 100) -> Tensor:  # (N, C, h, w) -> (N, 1024)
    """What one layer of fixed random filters sees, averaged over a 4 × 4 grid: features that no
    teacher had a hand in.
    """
    random = torch.Generator().manual_seed(0)
    shape = (FILTERS, images.shape[1], FILTER_SIDE, FILTER_SIDE)
    filters = torch.randn(shape, generator=random).to(images.device)
    centred = filters - filters.mean((1, 2, 3), keepdim=True)
    filters = F.normalize(centred.flatten(1)).view(shape)
    pooled = []
    for part in images.split(chunk):
        maps = F.conv2d(part, filters, padding=FILTER_SIDE // 2).relu_()
        pooled.append(F.adaptive_avg_pool2d(maps, GRID).flatten(1))
    return torch.cat(pooled)


def readout_curve(
    features: Tensor,  # (N, D)
    chosen: Tensor,  # (N,)
    classes: int,
) -> dict[int, float]:
    """Ridge regression of the teacher's choices on 1/8, 1/4, 1/2 and all but the first fifth,
    judged on that fifth.

    Keys are numbers of images learnt from.
    """
    held = int(len(features) * HELD_OUT)
    inputs = F.pad(features.double(), (0, 1), value=1.0)  # the last column is the constant
    wanted = F.one_hot(chosen, classes).double()
    moments = torch.zeros_like(inputs[:1].T @ inputs[:1])
    answers = torch.zeros_like(inputs[:1].T @ wanted[:1])
    curve: dict[int, float] = {}
    done = 0
    for halvings in range(DOUBLINGS, -1, -1):
        count = (len(features) - held) >> halvings
        part = slice(held + done, held + count)
        moments += inputs[part].T @ inputs[part]
        answers += inputs[part].T @ wanted[part]
        done = count
        weights = torch.linalg.solve(moments + _penalty(moments, count).diag(), answers)
        guess = (inputs[:held] @ weights).argmax(1)
        curve[count] = balanced_agreement(guess, chosen[:held], classes)
    return curve


def _penalty(moments: Tensor, count: int) -> Tensor:  # (D + 1, D + 1) -> (D + 1,)
    """What ridge regression adds to the diagonal; the constant is free."""
    variances = moments.diagonal() / count - (moments[-1] / count).square()
    size = (RIDGE * count * variances[:-1].mean()).clamp_min(1e-9)
    penalty = size.expand(len(moments)).clone()
    penalty[-1] = 1e-9
    return penalty


def neighbour_agreement(
    flat: Tensor,  # (N, D)
    chosen: Tensor,  # (N,)
    classes: int,
    chunk: int = 1000,
) -> float:
    """The first fifth, each decided as its nearest image among the rest is, copies of itself left
    out.
    """
    held = int(len(flat) * HELD_OUT)
    flat = flat - flat.mean(0)
    rest = flat[held:]
    squares = rest.square().sum(1)
    least = NEAR**2 * flat.shape[1]
    guess = []
    for part in flat[:held].split(chunk):
        distances = torch.addmm(squares[None], part, rest.T, alpha=-2)
        is_copy = distances + part.square().sum(1, keepdim=True) <= least
        distances.masked_fill_(is_copy, torch.inf)
        nearest = distances.argmin(1)
        has_nearest = distances.gather(1, nearest[:, None])[:, 0].isfinite()
        # Where all are copies, nothing can be said.
        guess.append(torch.where(has_nearest, chosen[held:][nearest], -1))
    return balanced_agreement(torch.cat(guess), chosen[:held], classes)


def balanced_agreement(guess: Tensor, chosen: Tensor, classes: int) -> float:  # (N,), (N,)
    """The mean over all classes of the share of a class's images guessed right; a class without
    images counts 0.
    """
    totals = torch.bincount(chosen, minlength=classes)
    rights = torch.bincount(chosen[guess == chosen], minlength=classes)
    return (rights.double() / totals.clamp_min(1)).mean().item()
