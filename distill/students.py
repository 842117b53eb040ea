"""Students: built for a set, and named by what a result belongs to."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from distill.files import hash_file
from distill.models import Classifier, ModelSpec, build_classifier, read_spec
from distill.models.classifier import spec_of
from distill.models.weights import load_weights, read_weights
from distill.options import StudentOptions
from distill.presence import require_file
from distill.ranges import require_options
from synthesis_kernels.errors import EchosetError


def build_student(options: StudentOptions, like: dict[str, Any], seed: int = 0) -> Classifier:
    """A student for a set, fresh unless the options name weights. `like` is the `input` entry of
    its manifest: channels, size, classes, task, mean, std.
    """
    require_options(options, StudentOptions, "options")
    spec = spec_of(like, options.model, options.arguments)
    student = build_classifier(spec, seed)
    if options.weights:
        load_weights(student.network, read_weights(options.weights), options.weights)
        _check_normaliser(options.weights, spec)
    student.check_forward()
    _check_training(student)
    return student


def _check_normaliser(weights: str, spec: ModelSpec) -> None:
    """Refuse a file whose own description says that its images were normalised otherwise."""
    told = read_spec(weights) if weights.endswith(".safetensors") else None
    if told and (told.mean, told.std) != (spec.mean, spec.std):
        raise EchosetError(
            f"{weights} was trained with mean {told.mean} and std {told.std}, and here the "
            f"teacher's count: {spec.mean} and {spec.std}"
        )


def _check_training(student: Classifier) -> None:
    """Some networks answer otherwise while they are trained: with the logits of auxiliary heads,
    say.
    """
    if type(student.network).__module__.startswith("distill."):
        return
    spec = student.spec
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        answer = copy.deepcopy(student).train()(student.grey_images())
    if not isinstance(answer, Tensor):
        raise EchosetError(
            f"{spec.model} answers with {type(answer).__name__} while it is trained, and not with "
            "logits alone; of torchvision's, "
            "give it the argument aux_logits=false"
        )


def identify_student(options: StudentOptions) -> dict[str, Any]:
    """The options with the content of the weights' file in place of its name: what a result belongs
    to.
    """
    weights = options.weights
    if weights:
        require_file(weights, "weights file")
        weights = hash_file(weights)
    return {**asdict(options), "weights": weights}
