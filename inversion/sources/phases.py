"""The ways to come by images, one after another: the sources, then what is done about short
classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from distill.models import Classifier
from distill.runtime import Runtime
from inversion.options import CollectOptions
from inversion.sources.boundary import require_one_decision
from inversion.sources.making import make_block
from inversion.sources.stock import Stock
from inversion.sources.stream import BLOCK, Source
from synthesis_kernels.errors import EchosetError

TRIES = 20
"""Images offered to a short class for each one that it lacks, before a way of making them is given
up.
"""
AGAIN = 10
"""How many times as many images `draw` draws again."""


@dataclass(frozen=True)
class Phase:
    """One way to come by images, and how many blocks of them there may be."""

    name: str
    make: Callable[[int, Stock], Tensor]
    limit: Callable[[Stock], int]
    drawn: bool
    """Whether these are a source's own images, which `raw_counts` counts."""


def replace_push(options: CollectOptions, teacher: Classifier, runtime: Runtime) -> CollectOptions:
    """The options, with `draw` and `mixup` in place of the usual `push` where the task has several
    decisions an image.
    """
    if teacher.task.exact or options.short != CollectOptions.short or not options.balanced:
        return options
    runtime.say(f"{teacher.spec.task} has no push: short classes are filled by draw and mixup")
    return replace(options, short=("draw", "mixup"))


def check_options(options: CollectOptions, teacher: Classifier) -> None:
    """Refuse what can't work with this teacher, by name."""
    classes = teacher.spec.classes
    unknown = [label for label in options.only if not 0 <= label < classes]
    if unknown:
        raise EchosetError(
            f"collection.only names class {unknown[0]}; the teacher knows 0 to {classes - 1}"
        )
    if options.balanced and "push" in options.short:
        remedy = "fill classes by other ways (collection.short: draw, augment, mixup)"
        require_one_decision(teacher, "push", remedy)


def plan_phases(
    sources: list[Source], teacher: Classifier, options: CollectOptions, seed: int
) -> list[Phase]:
    """The sources one after another, then what is done about short classes."""
    most = math.ceil(options.draws * options.images / BLOCK)
    todo = [_drawing(source, 0, most, source.address) for source in sources]
    if not options.balanced:  # without quotas no class is short
        return todo
    for way in options.short:
        if way == "draw":
            for source in sources:
                todo.append(_drawing(source, most, AGAIN * most, f"{source.address} again"))
        else:
            todo.append(_making(way, sources, teacher, options, seed))
    return todo


def _drawing(source: Source, first: int, count: int, name: str) -> Phase:
    """`count` blocks of a source from block `first` on, or as many as it has left."""
    blocks = count
    if source.blocks is not None:
        blocks = max(min(source.blocks - first, count), 0)

    def make(number: int, stock: Stock) -> Tensor:
        return source.block(first + number)

    def limit(stock: Stock) -> int:
        return blocks

    return Phase(name, make, limit, drawn=True)


def _making(
    way: str, sources: list[Source], teacher: Classifier, options: CollectOptions, seed: int
) -> Phase:
    """Images made for classes that are short."""

    def make(number: int, stock: Stock) -> Tensor:
        return make_block(way, number, stock, sources, teacher, options, seed)

    def limit(stock: Stock) -> int:
        blocks = math.ceil(TRIES * int(stock.missing().sum()) / BLOCK) + 1
        # A block of pushed images is as small as what is missing.
        return max(blocks, TRIES) if way == "push" else blocks

    return Phase(way, make, limit, drawn=False)
