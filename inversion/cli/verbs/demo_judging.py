"""What a demo's networks are judged on, and how they did."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.data.images import Images
from distill.evaluation import Evaluation, check_fit
from distill.evaluation import evaluate as evaluate_classifier
from distill.models import Classifier
from distill.students import build_student
from inversion.cli.verbs.judged import Decisions, ask_on_data
from inversion.cli.verbs.pictures import held_out_pictures
from inversion.cli.verbs.shared import is_bundled, load_test_data
from inversion.jobs import adversary_file
from inversion.pages.judging import judge

if TYPE_CHECKING:
    from torch import Tensor

    from distill.options import StudentOptions
    from inversion.cli.schema import DemoRun


@dataclass(frozen=True)
class Verdict:
    """How the networks did on test data."""

    teacher: Evaluation | None
    """None where there are no labels to judge it by."""
    student: Evaluation
    """Of its accuracy nothing can be said without labels either."""
    adversary_accuracy: float | None
    """Of the adversarial student, where it was kept."""
    test_images: str
    """What the data is called."""
    judged: dict[str, Any]
    """What the report shows of the test images."""


def has_labels(run: DemoRun) -> bool:
    """Whether there are true labels to judge by."""
    return run.data is not None or is_bundled(run.teacher)


def data_to_judge_on(run: DemoRun, teacher: Classifier) -> tuple[Images, Tensor | None]:
    """Test data; where there are none, pictures on which student and teacher can be compared, and
    the teacher's logits, which have labelled them.
    """
    if has_labels(run):
        return load_test_data(run.data, teacher, run.quiet, void=run.void), None
    return held_out_pictures(teacher, run)


def judge_demo(
    run: DemoRun,
    teacher: Classifier,
    student: Classifier,
    data: Images,
    teacher_logits: Tensor | None,  # (N, K, *places) where they are known already
) -> Verdict:
    """Teacher, student and, if it was kept, the adversarial student on the test data."""
    if teacher_logits is None:
        teacher_logits = ask_on_data(teacher, data, run, "asking the teacher")
    decisions = Decisions(student.task)
    student_result = evaluate_classifier(
        student, data, teacher, teacher_logits=teacher_logits, runtime=run, look=decisions
    )
    labelled = has_labels(run)
    judged = judge(
        data.images,
        check_fit(student, data),
        decisions.own,
        student.spec.classes,
        decisions.other if labelled else None,
        data=data.name,
        tested=labelled,
        class_names=teacher.class_names,
        task=student.task,
    )
    if not labelled:
        return Verdict(None, student_result, None, data.name, judged)
    teacher_result = evaluate_classifier(teacher, data, runtime=run, logits=teacher_logits)
    adversary_accuracy = None
    if run.synthesis.adversary.keep:
        adversary = load_adversary(run, run.synthesis.adversary.student, teacher)
        adversary_accuracy = evaluate_classifier(adversary, data, runtime=run).accuracy
    return Verdict(teacher_result, student_result, adversary_accuracy, data.name, judged)


def load_adversary(run: DemoRun, options: StudentOptions, teacher: Classifier) -> Classifier:
    """A network of these options with the weights of the adversarial student."""
    weights = adversary_file(Path(run.out) / "set", 0)
    return build_student(dataclasses.replace(options, weights=str(weights)), teacher.input)
