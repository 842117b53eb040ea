"""Hints at every stage, after FitNets (Romero et al. 2015), in shares: how much of the teacher's
features a student can't tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from distill.batch import Batch, Pair, Part
from distill.methods import Method
from distill.methods.shapes import averaged, same_side
from distill.models import Classifier
from distill.taps import Stages

LEAST = 1e-10
"""A layer's variance in its mean square, below which it counts as the same everywhere."""


def hint_loss_reference(
    student: Tensor,  # (B, C, h, w), after an adapter
    teacher: Tensor,  # (B, C, H, W)
) -> Tensor:
    """Definition: Σ(A_S − A_T)² / Σ(A_T − Ā_T)², Ā_T each channel's mean: the share of the
    teacher's variance that is left unexplained.

    1 for a student that knows the means alone, whatever the layer, the network and its units.
    """
    student, teacher = same_side(student, teacher)
    spread = (teacher - teacher.mean((0, 2, 3), keepdim=True)).square().mean()
    # A layer that is the same everywhere has nothing to tell, and to divide by next to nothing
    # would blow up the gradient.
    live = spread > LEAST * teacher.square().mean()
    return F.mse_loss(student, teacher) / torch.where(live, spread, torch.inf)


def hint_loss(
    student: Tensor,  # (B, C, h, w), after an adapter
    teacher: Tensor,  # (B, C, H, W)
) -> Tensor:
    """The same in few passes; differentiable in the student's map, and not in the teacher's, which
    may be of a narrower type.
    """
    return mean_hint_loss([(student, teacher)])


def mean_hint_loss(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Its mean over several pairs."""
    students, teachers = zip(*(same_side(*pair) for pair in pairs), strict=True)
    return _Unexplained.apply(len(pairs), *students, *teachers)


class _Unexplained(torch.autograd.Function):
    """Sums of squares layer by layer; what is one number a layer or a channel goes together."""

    @staticmethod
    def forward(ctx: Any, count: int, *maps: Tensor) -> Tensor:
        differences: list[Tensor] = []
        norms: list[Tensor] = []
        variances: list[Tensor] = []
        means: list[Tensor] = []
        for student, teacher in zip(maps[:count], maps[count:], strict=True):
            wide = torch.promote_types(student.dtype, torch.float32)
            variance, mean = torch.var_mean(teacher.to(wide), (0, 2, 3), correction=0)
            differences.append(student.to(wide) - teacher)
            norms.append(torch.linalg.vector_norm(differences[-1]))
            variances.append(variance)
            means.append(mean)
        sizes = tuple((one.shape[1], one.numel()) for one in differences)
        sums = _sums(sizes, norms[0].dtype, norms[0].device)
        spread = sums @ torch.cat(variances)
        about_zero = sums @ torch.cat(means).square()
        spread = spread.masked_fill(spread <= LEAST * about_zero, torch.inf)
        norm = torch.stack(norms)
        ctx.save_for_backward(spread, *differences)
        ctx.dtypes = [student.dtype for student in maps[:count]]
        return norm.dot(norm / spread)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        spread, *differences = ctx.saved_tensors
        scales = (2 * grad / spread).unbind()
        layers = zip(differences, scales, ctx.dtypes, strict=True)
        gradients = [(difference * scale).to(dtype) for difference, scale, dtype in layers]
        return None, *gradients, *[None] * len(differences)


@cache
def _sums(
    sizes: tuple[tuple[int, int], ...],  # of each layer: channels, and numbers in its maps
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:  # (L, ΣC)
    """What a vector of all layers' channels is multiplied by: each layer's mean, times its numbers
    and the count of layers.
    """
    rows = [torch.full((1, channels), numbers / channels) for channels, numbers in sizes]
    return (torch.block_diag(*rows) * len(sizes)).to(device, dtype)


class HintReaders(Part):
    """For each stage, and for the embedding, what tells the teacher's features from the
    student's.
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        assert pair.teacher is not None, "the learner asks for a teacher before parts are built"
        own = _widths(pair.student, pair.student_stages)
        given = _widths(pair.teacher, pair.teacher_stages)
        self.side = min(pair.teacher_stages.sides)
        self.layers = nn.ModuleList(_reader(*widths) for widths in zip(own, given, strict=True))

    # of (B, C, h, w)
    def keep(self, maps: Sequence[Tensor], embedding: Tensor) -> list[Tensor]:
        """Maps averaged down to the smallest of the teacher's, and the embedding as a map of one
        pixel.
        """
        small = [self._averaged(each) for each in maps]
        return [*small, embedding[:, :, None, None]]

    def _averaged(self, maps: Tensor) -> Tensor:
        return averaged(maps, self.side, self.side) if maps.shape[2] > self.side else maps


def _reader(own: int, given: int) -> nn.Conv2d:
    """A 1×1 convolution that tells the teacher's channels from the student's; of as many it begins
    as the same ones.
    """
    reader = nn.Conv2d(own, given, 1)
    if own == given:
        nn.init.dirac_(reader.weight)
        if reader.bias is not None:
            nn.init.zeros_(reader.bias)
    return reader


def _widths(classifier: Classifier, stages: Stages) -> tuple[int, ...]:
    """Channels of the maps, and numbers in the embedding."""
    embedding = stages.channels[-1]
    if stages.head:
        head = cast(nn.Linear, classifier.network.get_submodule(stages.head))
        embedding = head.in_features
    return *stages.channels, embedding


def _loss(batch: Batch) -> Tensor:
    """The mean over all stages and the embedding."""
    readers = cast(HintReaders, batch.parts["HintReaders"])
    given = batch.kept or readers.keep(batch.told_maps, batch.teacher_embedding)
    own = readers.keep(batch.looks.told_maps, batch.looks.embedding)
    pairs = [
        (read(student.float()), teacher)
        for read, student, teacher in zip(readers.layers, own, given, strict=True)
    ]
    return mean_hint_loss(pairs)


HINTS = Method("hints", 20.0, frozenset({"maps", "embedding"}), _loss, HintReaders, keeps=True)
