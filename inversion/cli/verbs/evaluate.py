"""Measure a model on labelled images."""

from __future__ import annotations

import dataclasses

from distill.evaluation import evaluate as evaluate_classifier
from inversion.cli.schema import EvaluateRun
from inversion.cli.show import finish, new_table
from inversion.cli.verbs.shared import load_test_data
from inversion.teacher import check_shape, load_teacher
from synthesis_kernels.errors import EchosetError


def execute(run: EvaluateRun) -> int:
    """Accuracy of one model, and its agreement with another."""
    if run.attacks and not run.against:
        raise EchosetError("--attacks compares two networks: name the second with --against")
    model = load_teacher(run.model)
    other = load_teacher(run.against) if run.against else None
    check_shape(model, "--model")
    if other:
        check_shape(other, "--against")
    data = load_test_data(run.data, model, run.quiet)
    result = evaluate_classifier(
        model, data, other, attacks=run.attacks if other else 0, runtime=run
    )
    name = run.model.weights or run.model.model
    table = new_table(f"{name} on {data.name}", "", "")
    table.add_row("accuracy", f"{result.accuracy:.2%}")
    if result.top5 is not None:
        table.add_row("among the first five", f"{result.top5:.2%}")
    table.add_row("calibration error", f"{result.ece:.4f}")
    table.add_row("mean entropy, nats", f"{result.entropy:.4f}")
    if result.agreement is not None:
        table.add_row(
            f"same decision as {run.against.weights or run.against.model}",
            f"{result.agreement:.2%}",
        )
    if result.magnitude_similarity is not None:
        table.add_row(
            "boundary similarity, size",
            f"{result.magnitude_similarity:.3f} ({result.boundary_pairs} pushes)",
        )
        table.add_row("boundary similarity, direction", f"{result.angle_similarity:.3f}")
    if result.transfer is not None:
        table.add_row(
            "adversarial transfer",
            f"{result.transfer:.2%} (of the teacher itself {result.transfer_teacher:.2%})",
        )
    for label, accuracy in enumerate(result.per_class):
        table.add_row(f"class {label}", "no images" if accuracy is None else f"{accuracy:.2%}")
    return finish(run, table, {"model": name, "data": data.name, **dataclasses.asdict(result)})
