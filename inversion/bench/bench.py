"""How fast: each kernel, the synthesis step and the distillation step, against their definitions
and the peers' form.

The limit is measured in the same run: the machine's own matrix and copy rates, beside the
multiply-adds counted in the step.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.files import write_json
from distill.loop import StepProgress
from distill.sizes import say_size
from inversion.bench.adversary import adversary_times
from inversion.bench.distillation import distillation_times, pool_times
from inversion.bench.kernels import bn_match_times, kernel_times
from inversion.bench.limits import ceilings
from inversion.bench.synthesis import step_memory, synthesis_times
from inversion.bench.timing import Bench, precision_name
from synthesis_kernels.backend import describe_device, describe_forms, repository_commit
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from inversion.cli.schema import BenchRun

HEADLINES = (
    "synthesis_step.speedup",
    "distillation_step.speedup",
    "pool.speedup",
    "bn_match.speedup",
    "synthesis_step.memory_ratio",
    "synthesis_step.share_of_limit",
)
"""The figures to judge by, as PART.FIGURE; they stand at the document's top level, too."""
ALIKE = ("device", "precision", "kernel_forms", "step", "teacher", "student", "batch", "torch")
"""What two files should have in common to be compared."""
COMPARISONS = 14
"""Calls of `Bench.compare` in all measurements, for the progress bar."""


def bench(run: BenchRun) -> dict[str, Any]:
    """Measure everything; the document's headline figures stand at its top level, the details below
    them.
    """
    earlier = read_earlier(run.against) if run.against is not None else None
    with StepProgress("measuring", COMPARISONS, run.quiet) as progress:
        bench = Bench(run, progress)
        check_size(bench)
        details = measure(bench)
        progress.update(COMPARISONS)
    document = headlines(details) | details | about(bench)
    if earlier is not None:
        document["against"] = changes(document, earlier, run.against)
    if run.save:
        write_json(Path(run.save), document)
    return document


def measure(bench: Bench) -> dict[str, Any]:
    """All details, part by part."""
    limit = ceilings(bench)
    details: dict[str, Any] = {"limit": limit}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "kernels": lambda: kernel_times(bench, limit),
        "bn_match": lambda: bn_match_times(bench, limit),
        "pool": lambda: pool_times(bench),
        "synthesis_step": lambda: synthesis_times(bench, limit) | step_memory(bench),
        "adversary_step": lambda: adversary_times(bench),
        "distillation_step": lambda: distillation_times(bench),
    }
    for name, part in parts.items():
        details[name] = part()
        if bench.run.save:
            # A run that is cut off leaves what it has.
            write_json(Path(bench.run.save), details | about(bench))
    return details


def check_size(bench: Bench) -> None:
    """Refuse images that the generators can't make, and networks that can't be had."""
    teacher, _ = bench.classifiers(tuned=False)
    size = teacher.spec.size
    if not isinstance(size, int) or size % 4 or not 8 <= size <= 32:
        raise EchosetError(
            "bench's generators double twice: images must be squares of 8 to 32 pixels, a "
            f"multiple of 4, not {say_size(size)}"
        )


def headlines(details: dict[str, Any]) -> dict[str, float]:
    """The figures to judge by."""
    figures = {}
    for name in HEADLINES:
        part, figure = name.split(".")
        figures[name] = details[part][figure]
    return figures


def about(bench: Bench) -> dict[str, Any]:
    """What the figures were measured on, and with."""
    return {
        "device": describe_device(bench.device),
        "precision": precision_name(bench.precision),
        "kernel_forms": describe_forms(bench.device),
        "step": bench.step,
        "teacher": bench.run.teacher.model,
        "student": bench.run.student.model,
        "batch": bench.run.batch,
        "repeats": bench.run.repeats,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": repository_commit(),
    }


def changes(document: dict[str, Any], earlier: dict[str, Any], file: str | None) -> dict[str, Any]:
    """The headline figures over those of an earlier file, and what else is another now."""
    differs = {}
    for name in ALIKE:
        if earlier.get(name) != document[name]:
            differs[name] = [earlier.get(name), document[name]]
    change = {}
    for name in HEADLINES:
        if earlier.get(name):
            change[name] = document[name] / earlier[name]
    return {"file": file, "device": earlier.get("device"), "differs": differs, "change": change}


def read_earlier(path: str) -> dict[str, Any]:
    """A document that `--save` wrote."""
    try:
        document = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise EchosetError(
            f"--against {path}: not a result of echoset bench --save ({error})"
        ) from error
    figures = []
    if isinstance(document, dict):
        figures = [document[name] for name in HEADLINES if name in document]
    if not figures or not all(isinstance(figure, float) for figure in figures):
        raise EchosetError(
            f"--against {path} holds no figure of echoset bench; give a file that --save wrote"
        )
    return document
