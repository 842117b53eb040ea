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

PART = 2000  # rows that are held in float64 at once
HELD_OUT = 0.2  # part of the set that readouts are judged on
DOUBLINGS = 3  # readouts learn from 1/8, 1/4, 1/2 and all of the rest
RIDGE = 1e-3  # of the readout, as a part of the mean variance of its inputs
FILTERS, FILTER_SIDE, GRID = 64, 5, 4  # of the readout's random convolution


def entropy(weights: Tensor) -> float:  # (N,), not negative
    """H of the weights' shares, in nats; 0 where there is no weight at all."""
    shares = weights.double() / weights.double().sum().clamp_min(1e-300)
    return max(0.0, -torch.special.xlogy(shares, shares).sum().item())


def coverage(counts: Tensor) -> float:  # (K,)
    """η = H(counts)/log K."""
    return entropy(counts) / math.log(len(counts))


def soft_coverage(answers: Tensor) -> tuple[float, float]:  # (N, K) softmax, float64
    """H(mean p)/log K, and the mutual information of image and class (H(mean p) − E H(p))/log K."""
    balance = coverage(answers.mean(0))
    spread = -torch.special.xlogy(answers, answers).sum(1).mean().item() / math.log(
        answers.shape[1]
    )
    return balance, max(0.0, balance - spread)


def pair_coverage(first: Tensor, second: Tensor, classes: int) -> tuple[float, float]:  # (N,), (N,)
    """Of all ordered pairs (first choice, second choice): the share that occurs, and
    exp(H)/K(K−1).
    """
    counts = torch.bincount(first * classes + second, minlength=classes**2)
    possible = classes * (classes - 1)
    return (counts > 0).sum().item() / possible, math.exp(entropy(counts)) / possible


def effective_rank(features: Tensor) -> float:  # (N, D)
    """exp of the entropy of the covariance's normalised eigenvalues (Roy & Vetterli 2007); 1 where
    nothing varies.
    """
    centre = sum(part.double().sum(0) for part in features.split(PART)) / len(features)
    return _effective_number(features, lambda rows: rows.double() - centre)


def shared_layout(flat: Tensor) -> float:  # (N, D)
    """Contrast of the mean image over the root mean square contrast of an image; 0 where no image
    has any.
    """
    mean = sum(part.double().sum(0) for part in flat.split(PART)) / len(flat)
    one = sum(part.double().var(1, correction=0).sum() for part in flat.split(PART)) / len(flat)
    return min((mean.var(correction=0) / one).sqrt().item(), 1.0) if one > 0 else 0.0


def vendi(features: Tensor) -> float:  # (N, D)
    """The Vendi score of the cosine kernel (Friedman & Dieng 2023): exp of the entropy of the
    eigenvalues of K/N.
    """
    # K/N = X·Xᵀ/N has the non-zero eigenvalues of Xᵀ·X/N, so the kernel itself need not be built.
    return _effective_number(features, lambda rows: F.normalize(rows.double(), dim=1))


def _effective_number(features: Tensor, prepare: Callable[[Tensor], Tensor]) -> float:
    if len(features) < features.shape[1]:
        rows = prepare(features)
        gram = rows @ rows.T
    else:
        gram = sum(rows.T @ rows for rows in map(prepare, features.split(PART)))
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
    present = [features[chosen == label] for label in range(classes) if (chosen == label).any()]
    return sum(measure(part) for part in present) / classes


def shrink(images: Tensor) -> Tensor:  # (N, C, H, W) in [0, 1] -> (N, C, h, w)
    """The images averaged down to a square of at most `MOST_VALUES` values; smaller ones as they
    are.
    """
    channels, side = images.shape[1], math.isqrt(MOST_VALUES // images.shape[1])
    return (
        images if images[0].numel() <= channels * side**2 else F.adaptive_avg_pool2d(images, side)
    )


def duplicate_rate(
    flat: Tensor, count: int, chunk: int = 1000, quiet: bool = True
) -> float:  # (N, D) in [0, 1]
    """Share of the first `count` images that lie within `NEAR` of another image of the set."""
    flat = flat - flat.mean(0)
    squares, found, limit = flat.square().sum(1), 0, NEAR**2 * flat.shape[1]
    with StepProgress("looking for duplicates", count, quiet) as progress:
        for start in range(0, count, chunk):
            rows = slice(start, min(start + chunk, count))
            apart = torch.addmm(squares[None], flat[rows], flat.T, alpha=-2).add_(
                squares[rows, None]
            )
            apart.diagonal(start).fill_(torch.inf)  # an image is not its own duplicate
            found += (apart.amin(1) <= limit).sum().item()
            progress.update(rows.stop)
    return found / count


def random_features(images: Tensor, chunk: int = 100) -> Tensor:  # (N, C, h, w) -> (N, 1024)
    """What one layer of fixed random filters sees, averaged over a 4 × 4 grid: features that no
    teacher had a hand in.
    """
    random = torch.Generator().manual_seed(0)
    filters = torch.randn(FILTERS, images.shape[1], FILTER_SIDE, FILTER_SIDE, generator=random).to(
        images.device
    )
    filters = F.normalize((filters - filters.mean((1, 2, 3), keepdim=True)).flatten(1)).view_as(
        filters
    )
    pooled = []
    for part in images.split(chunk):
        maps = F.conv2d(part, filters, padding=FILTER_SIDE // 2).relu_()
        pooled.append(F.adaptive_avg_pool2d(maps, GRID).flatten(1))
    return torch.cat(pooled)


def readout_curve(
    features: Tensor, chosen: Tensor, classes: int
) -> dict[int, float]:  # (N, D), (N,)
    """Ridge regression of the teacher's choices on 1/8, 1/4, 1/2 and all but the first fifth,
    judged on that fifth.

    Keys are numbers of images learnt from.
    """
    held, found, done = int(len(features) * HELD_OUT), {}, 0
    inputs = F.pad(features.double(), (0, 1), value=1.0)  # the last column is the constant
    wanted = F.one_hot(chosen, classes).double()
    moments, answers = (
        torch.zeros_like(inputs[:1].T @ inputs[:1]),
        torch.zeros_like(inputs[:1].T @ wanted[:1]),
    )
    for share in range(DOUBLINGS, -1, -1):
        count = (len(features) - held) >> share
        part = slice(held + done, held + count)
        moments += inputs[part].T @ inputs[part]
        answers += inputs[part].T @ wanted[part]
        done = count
        variances = moments.diagonal() / count - (moments[-1] / count).square()
        penalty = (
            (RIDGE * count * variances[:-1].mean()).clamp_min(1e-9).expand(len(moments)).clone()
        )
        penalty[-1] = 1e-9  # the constant is free
        guess = (inputs[:held] @ torch.linalg.solve(moments + penalty.diag(), answers)).argmax(1)
        found[count] = balanced_agreement(guess, chosen[:held], classes)
    return found


def neighbour_agreement(
    flat: Tensor, chosen: Tensor, classes: int, chunk: int = 1000
) -> float:  # (N, D), (N,)
    """The first fifth, each decided as its nearest image among the rest is, copies of itself left
    out.
    """
    held = int(len(flat) * HELD_OUT)
    flat = flat - flat.mean(0)
    rest, squares = flat[held:], flat[held:].square().sum(1)
    guess, least = [], NEAR**2 * flat.shape[1]
    for part in flat[:held].split(chunk):
        distances = torch.addmm(squares[None], part, rest.T, alpha=-2)
        distances.masked_fill_(distances + part.square().sum(1, keepdim=True) <= least, torch.inf)
        nearest = distances.argmin(1)
        found = distances.gather(1, nearest[:, None])[:, 0].isfinite()
        guess.append(
            torch.where(found, chosen[held:][nearest], -1)
        )  # where all are copies, nothing can be said
    return balanced_agreement(torch.cat(guess), chosen[:held], classes)


def balanced_agreement(guess: Tensor, chosen: Tensor, classes: int) -> float:  # (N,), (N,)
    """The mean over all classes of the share of a class's images guessed right; a class without
    images counts 0.
    """
    totals = torch.bincount(chosen, minlength=classes)
    rights = torch.bincount(chosen[guess == chosen], minlength=classes)
    return (rights.double() / totals.clamp_min(1)).mean().item()
