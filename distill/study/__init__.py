"""The study: every method on every set under every corruption, cell by cell, so that a kill costs
one cell at most.

A finished cell is one JSON file; it is never computed again. Several processes may share a grid:
under torchrun they claim cells from one another, elsewhere each takes every n-th.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distill.data.images import Images
from distill.evaluation import predict
from distill.files import write_sealed
from distill.gathering import gather
from distill.locks import in_turn
from distill.loop import StepProgress
from distill.models import Classifier, as_classifier
from distill.options import DistillOptions, StudentOptions, StudyOptions
from distill.runtime import Runtime
from distill.sets.transfer_set import TransferSet
from distill.sharing import shared_out
from distill.study.cell import MADE_WITH, Shared, origins, read_cell, run_cell
from distill.study.check import check_study
from distill.study.origin import Origin
from distill.study.plan import ORIGINAL, Cell, method_loss, plan
from distill.study.summary import summarise
from distill.tasks.places import answers_fit

LOCK = ".lock"
"""Among the cells: which of them some process computes."""
__all__ = ["Cell", "method_loss", "plan", "run_study", "summarise"]


def run_study(
    teacher: Classifier | nn.Module,
    sets: Mapping[str, TransferSet | Images],
    test: Images,
    out: str | Path,
    student: StudentOptions = StudentOptions(),
    options: StudyOptions = StudyOptions(),
    distillation: DistillOptions = DistillOptions(),
    original: Images | None = None,
    runtime: Runtime = Runtime(),
) -> list[dict[str, Any]]:
    """Fill the grid under `out`/cells and return every cell that is finished, this process's and
    others'.
    """
    teacher = as_classifier(teacher)
    runtime.resolve_device()  # refuses a device that isn't there, before any work
    shared = Shared(teacher, test, student, options, distillation, runtime)
    check_study(shared, sets, original)
    everything = dict(sets)
    if original is not None:
        everything[ORIGINAL] = original
    made_with = origins(shared, everything, plan(sets, options, original is not None))
    place = Path(out) / "cells"
    # What was made otherwise is refused before anything is computed.
    _read_cells(made_with, place)
    _fill(shared, everything, made_with, place)
    return _read_cells(made_with, place)


def _fill(
    shared: Shared,
    sets: Mapping[str, TransferSet | Images],
    made_with: Mapping[Cell, Origin],
    place: Path,
) -> None:
    """Compute what is missing of this process's share of the cells."""
    name = sha256(repr(sorted(origin.key for origin in made_with.values())).encode()).hexdigest()
    with shared_out(shared.runtime, list(made_with), f"study {name}") as share:
        share.begin(
            lambda cell: _file_of(cell, place).is_file(),
            lambda cell: _folder_of(cell, place, made_with[cell]).is_dir(),
        )
        with StepProgress("cells", share.total, shared.runtime.quiet) as progress:
            work = _Work(shared, place, progress)
            for cell in share:
                figures = work.fill(cell, sets[cell.set], made_with[cell])
                progress.update(share.total - share.left, figures)
        gather(
            share,
            place,
            lambda cell: _file_of(cell, place).is_file(),
            lambda cell: [_file_of(cell, place)],
        )


class _Work:
    """What a process does about a cell."""

    def __init__(self, shared: Shared, place: Path, progress: StepProgress) -> None:
        self.shared = shared
        self.place = place
        self.progress = progress

    def fill(self, cell: Cell, data: TransferSet | Images, origin: Origin) -> str:
        """Compute a cell, if nobody has; a line about it."""
        path = _file_of(cell, self.place)
        folder = _folder_of(cell, self.place, origin)
        figures = ""
        told = f"another process computes {cell.name}: waiting for it"
        with in_turn(self.place / LOCK, cell.name, partial(self.progress.say, told)):
            if read_cell(path, origin) is None:
                result = run_cell(self.shared, cell, data, self.answers, folder)
                write_sealed(path, {"key": origin.key, MADE_WITH: origin.document, **result})
                figures = f"{cell.name} {result['accuracy']:.2%}"
            _remove_work(folder)
        return figures

    @cached_property
    def answers(self) -> Tensor | None:  # (N, K, *places)
        """The teacher's, to the test images; None where they are so large that each cell asks."""
        teacher = self.shared.teacher
        images = self.shared.test.images
        if not answers_fit(len(images), teacher.answer_shape):
            return None
        return predict(teacher, images, self.shared.runtime.resolve_device()).cpu()


def _folder_of(cell: Cell, place: Path, origin: Origin) -> Path:
    """Where a cell is computed."""
    return place / cell.name / origin.key[:12]


def _file_of(cell: Cell, place: Path) -> Path:
    return place / f"{cell.name}.json"


def _read_cells(made_with: Mapping[Cell, Origin], place: Path) -> list[dict[str, Any]]:
    """The results of the cells that are finished."""
    results = [read_cell(_file_of(cell, place), origin) for cell, origin in made_with.items()]
    return [result for result in results if result is not None]


def _remove_work(folder: Path) -> None:
    """Remove what a cell kept while it was computed."""
    shutil.rmtree(folder, ignore_errors=True)
    # Another study's cell may have been stopped there.
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
