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
from synthesis_kernels import native
from synthesis_kernels.backend import pick_form

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
        if all(_has_kernel(*pair) for pair in zip(maps[:count], maps[count:], strict=True)):
            return _Unexplained._by_kernel(ctx, count, maps)
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
        ctx.by_kernel = False
        ctx.save_for_backward(spread, *differences)
        ctx.dtypes = [student.dtype for student in maps[:count]]
        return norm.dot(norm / spread)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.by_kernel:
            return _Unexplained._kernel_gradient(ctx, grad)
        spread, *differences = ctx.saved_tensors
        scales = (2 * grad / spread).unbind()
        layers = zip(differences, scales, ctx.dtypes, strict=True)
        gradients = [(difference * scale).to(dtype) for difference, scale, dtype in layers]
        return None, *gradients, *[None] * len(differences)

    @staticmethod
    def _by_kernel(ctx: Any, count: int, maps: tuple[Tensor, ...]) -> Tensor:
        rows = [native.as_rows(each) for each in maps]
        # Each layer's share, and what its gradient is multiplied by.
        found = rows[0].new_empty(count, 2)
        for place, (student, teacher) in enumerate(zip(rows[:count], rows[count:], strict=True)):
            channels = student.shape[-1]
            sums = student.new_zeros(torch.get_num_threads(), 3, channels)
            given = (student, teacher, sums, found[place], LEAST)
            native.call("hint_loss", teacher.dtype, *given, student.numel() // channels, channels)
        ctx.by_kernel = True
        ctx.save_for_backward(found, *rows)
        return found[:, 0].mean()

    @staticmethod
    def _kernel_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found, *rows = ctx.saved_tensors
        count = len(found)
        gradients: list[Tensor] = []
        for place, (student, teacher) in enumerate(zip(rows[:count], rows[count:], strict=True)):
            channels = student.shape[-1]
            out = torch.empty_like(student)
            given = (student, teacher, found[place], grad, out, 1 / count)
            sizes = (student.numel() // channels, channels)
            native.call("hint_gradient", teacher.dtype, *given, *sizes)
            gradients.append(native.as_channels(out))
        return None, *gradients, *[None] * count


def _has_kernel(student: Tensor, teacher: Tensor) -> bool:
    """Whether there is a native form for a pair of maps."""
    return (
        pick_form(student) == "native"
        and student.dtype is torch.float32
        and teacher.dtype in (torch.float32, torch.bfloat16)
        and student.shape == teacher.shape
    )


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
        self.sides = min(pair.teacher_stages.sides)
        self.layers = nn.ModuleList(_reader(*widths) for widths in zip(own, given, strict=True))

    def readers(self) -> list[nn.Conv2d]:
        """One for each stage, and for the embedding."""
        return [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]

    # of (B, C, h, w)
    def keep(self, maps: Sequence[Tensor], embedding: Tensor) -> list[Tensor]:
        """Maps averaged down to the smallest of the teacher's, and the embedding as a map of one
        pixel.
        """
        small = [self._averaged(each) for each in maps]
        return [*small, embedding[:, :, None, None]]

    def _averaged(self, maps: Tensor) -> Tensor:
        return averaged(maps, *self.sides) if tuple(maps.shape[2:]) > self.sides else maps


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
    given = batch.kept_hints or readers.keep(batch.raw_teacher_maps, batch.teacher_embedding)
    own = readers.keep(batch.student_taps.told_maps, batch.student_taps.embedding)
    pairs = [
        (_read(reader, student.float()), teacher)
        for reader, student, teacher in zip(readers.readers(), own, given, strict=True)
    ]
    return mean_hint_loss(pairs)


def _read(reader: nn.Conv2d, maps: Tensor) -> Tensor:
    """What it tells of every pixel: one product, of which libraries make more."""
    rows = F.linear(maps.movedim(1, -1), reader.weight.flatten(1), reader.bias)
    return rows.movedim(-1, 1)


HINTS = Method("hints", 20.0, frozenset({"maps", "embedding"}), _loss, HintReaders, keeps=True)
