"""Measure a model on labelled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.evaluation import Evaluation, check_fit
from distill.evaluation import evaluate as evaluate_classifier
from distill.names import show_class
from distill.tasks import say_figure
from inversion.classes import MOST_NAMED, MOST_ROWS
from inversion.cli.show import command_line, finish, new_table
from inversion.cli.verbs.judged import Decisions
from inversion.cli.verbs.shared import load_test_data
from inversion.inspection import check_shape
from inversion.pages.judging import judge
from inversion.pages.student import write_evaluation
from inversion.teacher import load_teacher
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from rich.table import Table

    from distill.data.images import Images
    from distill.models import Classifier
    from inversion.cli.schema import EvaluateRun
    from inversion.options import TeacherOptions


def execute(run: EvaluateRun) -> int:
    """Accuracy of one model, and its agreement with another."""
    if run.attacks and not run.against:
        raise EchosetError("--attacks compares two networks: name the second with --against")
    if run.page and not run.page.endswith(".html"):
        raise EchosetError(f"--page is the page to write and should end in .html, got {run.page}")
    model = load_teacher(run.model, trust=run.trust)
    check_shape(model, "--model")
    other = None
    if run.against:
        other = load_teacher(run.against, trust=run.trust)
        check_shape(other, "--against")
    data = load_test_data(run.data, model, run.quiet, "--model", run.void)
    decisions = Decisions(model.task) if run.page else None
    result = evaluate_classifier(
        model, data, other, attacks=run.attacks, runtime=run, look=decisions
    )
    document = _document(run, model, data, result)
    if decisions is not None:
        _write_page(run, model, data, decisions, result)
        document["page"] = run.page
    written = f"page: {run.page}" if run.page else None
    return finish(run, _new_table(run, model, data, result), document, written)


def _write_page(
    run: EvaluateRun, model: Classifier, data: Images, decisions: Decisions, result: Evaluation
) -> None:
    """The page about the networks' answers."""
    networks = ["network"]
    rows = [("", _name_of(run.model)), *_own_figures(result), *_figures(result)]
    if run.against:
        networks.append("other")
        rows.append(
            (f"same decision as the other, {_name_of(run.against)}", f"{result.agreement:.2%}")
        )
    if len(_class_figures(result)) > 1:  # the page itself has each class's accuracy
        rows += _class_rows(result, model.class_names)
    judged = judge(
        data.images,
        check_fit(model, data),
        decisions.own,
        model.spec.classes,
        decisions.other,
        networks,
        data=data.name,
        class_names=model.class_names,
        task=model.task,
    )
    lead = f"{_name_of(run.model)} decides {result.accuracy:.2%} of {data.name} right."
    for figure, value in _own_figures(result)[:1]:
        lead = f"{_name_of(run.model)} has a {figure} of {value} on {data.name}."
    write_evaluation(lead, rows, judged, command_line(), Path(str(run.page)))


def _document(
    run: EvaluateRun, model: Classifier, data: Images, result: Evaluation
) -> dict[str, Any]:
    """The last line of --json."""
    figures = dataclasses.asdict(result)
    document: dict[str, Any] = {"model": _name_of(run.model), "data": data.name}
    if result.own:
        document["own"] = figures.pop("own")  # first, as what to judge by
    document |= figures
    if data.matched:
        document["folders"] = data.matched
    if model.class_names:
        document["class_names"] = list(model.class_names)
    return document


def _new_table(run: EvaluateRun, model: Classifier, data: Images, result: Evaluation) -> Table:
    """What was found."""
    table = new_table(f"{_name_of(run.model)} on {data.name}", "", "")
    if data.matched:
        table.add_row("folders", data.matched)
    for row in (*_own_figures(result), *_figures(result)):
        table.add_row(*row)
    if run.against:
        _add_comparison(table, result, _name_of(run.against))
    for row in _class_rows(result, model.class_names):
        table.add_row(*row)
    return table


def _name_of(options: TeacherOptions) -> str:
    return options.weights or options.model


def _figures(result: Evaluation) -> list[tuple[str, str]]:
    """What the network's own answers say."""
    rows = [("accuracy", f"{result.accuracy:.2%}")]
    if result.top5 is not None:
        rows.append(("among the first five", f"{result.top5:.2%}"))
    rows.append(("calibration error", f"{result.ece:.4f}"))
    rows.append(("mean entropy, nats", f"{result.entropy:.4f}"))
    return rows


def _own_figures(result: Evaluation) -> list[tuple[str, str]]:
    """The task's own, by which to judge first."""
    own = result.own.items()
    return [
        (say_figure(name), f"{value:.4f}") for name, value in own if not isinstance(value, list)
    ]


def _class_figures(result: Evaluation) -> dict[str, list[float | None]]:
    """By name, figures that there is one of for each class, the task's own first."""
    own = result.own.items()
    lists = {say_figure(name): values for name, values in own if isinstance(values, list)}
    return {**lists, "accuracy": result.per_class}


def _class_rows(result: Evaluation, names: Sequence[str] | None) -> list[tuple[str, str]]:
    """The figures of each class; where there are many, of those that fare worst."""
    figures = _class_figures(result)
    first, *_ = figures.values()
    judged = [(value, label) for label, value in enumerate(first) if value is not None]
    labels = list(range(len(first)))
    if len(first) > MOST_ROWS:
        labels = [label for _, label in sorted(judged)[:MOST_NAMED]]
    rows = [(f"class {show_class(label, names)}", _say_class(figures, label)) for label in labels]
    if len(first) <= MOST_ROWS:
        return rows
    more = len(judged) - MOST_NAMED
    if more > 0:
        rows.append((f"{more:,} more classes", "as high, or higher"))
    if len(judged) < len(first):
        rows.append(("classes without images", f"{len(first) - len(judged):,}"))
    return rows


def _say_class(figures: Mapping[str, Sequence[float | None]], label: int) -> str:
    """What is known of a class; its accuracy alone needs no name."""
    values = {name: each[label] for name, each in figures.items()}
    if None in values.values():
        return "no images"
    if len(values) == 1:
        return f"{values['accuracy']:.2%}"
    return ", ".join(f"{name} {value:.2%}" for name, value in values.items())


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
