"""Measure a model on labelled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill.evaluation import Evaluation
from distill.evaluation import evaluate as evaluate_classifier
from distill.names import show_class
from inversion.classes import MOST_NAMED, MOST_ROWS
from inversion.cli.show import finish, new_table
from inversion.cli.verbs.shared import load_test_data
from inversion.inspection import check_shape
from inversion.teacher import load_teacher
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from rich.table import Table

    from inversion.cli.schema import EvaluateRun
    from inversion.options import TeacherOptions


def execute(run: EvaluateRun) -> int:
    """Accuracy of one model, and its agreement with another."""
    if run.attacks and not run.against:
        raise EchosetError("--attacks compares two networks: name the second with --against")
    model = load_teacher(run.model, trust=run.trust)
    check_shape(model, "--model")
    other = None
    if run.against:
        other = load_teacher(run.against, trust=run.trust)
        check_shape(other, "--against")
    data = load_test_data(run.data, model, run.quiet, "--model")
    result = evaluate_classifier(model, data, other, attacks=run.attacks, runtime=run)
    name = _name_of(run.model)
    table = new_table(f"{name} on {data.name}", "", "")
    if data.matched:
        table.add_row("folders", data.matched)
    _add_figures(table, result)
    if run.against:
        _add_comparison(table, result, _name_of(run.against))
    _add_classes(table, result.per_class, model.class_names)
    for figure, value in result.own.items():
        table.add_row(figure, f"{value:.4f}")
    document = {"model": name, "data": data.name, **dataclasses.asdict(result)}
    if data.matched:
        document["folders"] = data.matched
    if model.class_names:
        document["class_names"] = list(model.class_names)
    return finish(run, table, document)


def _name_of(options: TeacherOptions) -> str:
    return options.weights or options.model


def _add_figures(table: Table, result: Evaluation) -> None:
    """What the network's own answers say."""
    table.add_row("accuracy", f"{result.accuracy:.2%}")
    if result.top5 is not None:
        table.add_row("among the first five", f"{result.top5:.2%}")
    table.add_row("calibration error", f"{result.ece:.4f}")
    table.add_row("mean entropy, nats", f"{result.entropy:.4f}")


def _add_classes(
    table: Table, accuracies: Sequence[float | None], names: Sequence[str] | None
) -> None:
    """The accuracy of each class; where there are many, of those that fare worst."""
    judged = [(value, label) for label, value in enumerate(accuracies) if value is not None]
    if len(accuracies) <= MOST_ROWS:
        for label, accuracy in enumerate(accuracies):
            shown = "no images" if accuracy is None else f"{accuracy:.2%}"
            table.add_row(f"class {show_class(label, names)}", shown)
        return
    for accuracy, label in sorted(judged)[:MOST_NAMED]:
        table.add_row(f"class {show_class(label, names)}", f"{accuracy:.2%}")
    more = len(judged) - MOST_NAMED
    if more > 0:
        table.add_row(f"{more:,} more classes", "as high, or higher")
    if len(judged) < len(accuracies):
        table.add_row("classes without images", f"{len(accuracies) - len(judged):,}")


def _add_comparison(table: Table, result: Evaluation, other: str) -> None:
    """How near the network is to the other one."""
    table.add_row(f"same decision as {other}", f"{result.agreement:.2%}")
    if result.magnitude_similarity is not None:
        size = f"{result.magnitude_similarity:.3f} ({result.boundary_pairs} pushes)"
        table.add_row("boundary similarity, size", size)
        table.add_row("boundary similarity, direction", f"{result.angle_similarity:.3f}")
    if result.transfer is not None:
        share = f"{result.transfer:.2%} (of the teacher itself {result.transfer_teacher:.2%})"
        table.add_row("adversarial transfer", share)
