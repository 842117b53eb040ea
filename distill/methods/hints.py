"""Hints at every stage, after FitNets (Romero et al. 2015), in shares: how much of the teacher's
features a student can't tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Batch, Pair, Part, add_up
from distill.methods import Method
from distill.methods.shapes import same_side
from distill.models import Classifier
from distill.taps import Stages


def hint_loss(
    student: Tensor,  # (B, C, h, w), after an adapter
    teacher: Tensor,  # (B, C, H, W)
) -> Tensor:
    """Σ(A_S − A_T)² / Σ(A_T − Ā_T)², Ā_T each channel's mean: the share of the teacher's variance
    that is left unexplained.

    1 for a student that knows the means alone, whatever the layer, the network and its units.
    """
    student, teacher = same_side(student, teacher)
    spread = (teacher - teacher.mean((0, 2, 3), keepdim=True)).square().mean()
    # A layer that is the same everywhere has nothing to tell, and to divide by next to nothing
    # would blow up the gradient.
    live = spread > 1e-10 * teacher.square().mean()
    return F.mse_loss(student, teacher) / torch.where(live, spread, torch.inf)


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
        if maps.shape[2] > self.side:
            return F.adaptive_avg_pool2d(maps, self.side)
        return maps


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
    given = batch.kept or readers.keep(batch.teacher_maps, batch.teacher_embedding)
    own = readers.keep(batch.looks.maps, batch.looks.embedding)
    shares = [
        hint_loss(read(student), teacher.float())
        for read, student, teacher in zip(readers.layers, own, given, strict=True)
    ]
    return add_up(shares) / len(shares)


HINTS = Method("hints", 20.0, frozenset({"maps", "embedding"}), _loss, HintReaders, keeps=True)
