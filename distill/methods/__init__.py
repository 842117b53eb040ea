"""Ways to distil: one file a method, and one line in this table.

A file holds the method's loss, a function of tensors, and a `Method`, which says what it needs.
Nothing here imports torch: the names are read for `--help`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from torch import Tensor

    from distill.batch import Batch, Part

METHODS = {
    "rkd": "relational.RKD",
    "rkd-d": "relational.RKD_D",
    "rkd-a": "relational.RKD_A",
    "fitnet": "fitnet.FITNET",
    "at": "attention.AT",
    "fsp": "fsp.FSP",
    "sp": "similarity.SP",
    "hints": "hints.HINTS",
    "one": "ensemble.ONE",
    "dml": "mutual.DML",
    "labels": "labels.LABELS",
    "hinton": "hinton.HINTON",
    "mse": "mse.MSE",
    "bss": "boundary.BSS",
}
"""Every method and where it is. Their terms are added up in this order."""

LABELS = "labels"
"""The method that others bring along."""

Need = Literal["answers", "maps", "embedding", "draws", "teacher"]
"""The teacher's logits; both networks' maps; what their last linear layers read; random numbers;
the teacher itself, to be asked for other images.
"""
Compares = Literal["never", "maps", "always"]
FROM_TEACHER = {"answers", "maps", "embedding", "teacher"}
FEATURES = {"maps", "embedding"}


@dataclass(frozen=True)
class Method:
    """A way to distil: what it needs, and its term of the loss."""

    name: str
    weight: float
    """The weight it was published with."""
    needs: frozenset[Need]
    """What it compares."""
    loss: Callable[[Batch], Tensor]
    """A batch's loss, a scalar, before its weight."""
    part: type[Part] | None = None
    """What is trained beside the student. Methods that name the same class share one."""
    pairs: int = 1
    """Pairs of stages it compares at least."""
    keeps: bool = False
    """Whether its part can say what to `keep` of the teacher's features beforehand, so that the
    teacher need not be asked at every step.
    """
    labels: float | None = None
    """Weight of the labels that come along where none are named: 0 for a method that teaches the
    classes. None leaves it to the methods beside it, and is 1 where no other says anything.
    """
    beside_labels: tuple[float, float] | None = None
    """Its weight and that of the labels in a study of data that has labels; None: they change
    nothing.
    """
    crowd: bool = False
    """Whether it trains further networks like the student, in a training of its own."""
    one_decision: bool = False
    """Whether it has a meaning only where a network decides once an image."""
    compares: Compares = "always"
    """Whether it compares images of a batch with one another. Where several processes share a
    batch, it is given all of it then; a mean over images never needs that, and a mean over all
    places with a label does where there are several decisions an image (maps).
    """
    early: float = 1.0
    """Part of the training, from 0 to 1, after which `Batch.full_phase` is false, and some of its
    loss may be left out.
    """

    @property
    def asks_teacher(self) -> bool:
        """Whether it needs a teacher."""
        return bool(self.needs & FROM_TEACHER)

    @property
    def on_features(self) -> bool:
        """Whether it compares what networks compute on the way."""
        return bool(self.needs & FEATURES)


NONE: Mapping[str, Method] = MappingProxyType({})
"""No methods of a user's own."""


@cache
def find_method(name: str) -> Method:
    """The method of this name; its file is imported when it is first asked for."""
    if name not in METHODS:
        raise EchosetError(f"no loss '{name}'; there are {', '.join(METHODS)}")
    file, _, attribute = METHODS[name].partition(".")
    return getattr(import_module(f"{__name__}.{file}"), attribute)


def find_methods(names: Iterable[str], own: Mapping[str, Method] = NONE) -> list[Method]:
    """The methods of these names, in the order of the table; a user's `own` come last."""
    names = set(names)
    found = [find_method(name) for name in METHODS if name in names]
    return found + [method for name, method in own.items() if name in names]
