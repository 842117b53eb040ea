"""Further networks like the student, for methods that train several."""

from __future__ import annotations

import torch

from distill.models import Classifier, build_classifier
from synthesis_kernels.errors import EchosetError


def build_like(student: Classifier, seed: int) -> Classifier:
    """Another network of the student's kind, with weights of its own."""
    try:
        other = build_classifier(student.spec, seed)
        same = _shapes(other) == _shapes(student)
    except EchosetError:
        same = False
    if not same:
        raise EchosetError(
            f"dml and one train further networks like the student, and '{student.spec.model}' "
            "doesn't say how to build it: give the student by a name of the zoo or an import path"
        )
    return other


def _shapes(classifier: Classifier) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in classifier.state_dict().items()}
