"""What a saved state, or a finished student, belongs to."""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import sha256

from distill.carried import carried_answers
from distill.data.images import Images, content_hash
from distill.models import Classifier
from distill.options import DistillOptions
from distill.own import OwnTraining
from distill.runtime import Runtime
from distill.sets.transfer_set import TransferSet
from distill.team import SOLO, Team


def lesson_key(
    student: Classifier,
    data: TransferSet | Images,
    teacher: Classifier | None,
    options: DistillOptions,
    runtime: Runtime,
    own: OwnTraining = OwnTraining(),
    team: Team = SOLO,
) -> str:
    """What a saved state, or a finished student, belongs to: a run with anything else changed must
    not pick it up. Its last word is the learning rate.
    """
    machine = runtime.resolve(options.steps).of_team(team).key
    answers = carried_answers(data, teacher, options, own.losses)
    networks = [student]
    if teacher is not None and answers is None:
        networks.append(teacher)
    known = [
        (each.weight_hash(), each.contract, each.spec.model, each.spec.arguments)
        for each in networks
    ]
    settings = asdict(options)
    rate = settings.pop("learning_rate")
    parts = [known, content_hash(data.images, data.labels), settings, runtime.seed, machine]
    parts += own.identity
    if answers is not None:
        parts.append(answers.identity)
    return f"{sha256(json.dumps(parts, default=str).encode()).hexdigest()} {rate}"


def key_at_any_rate(key: str) -> str:
    """What a state belongs to that a student left who broke: whoever goes on may lower the rate."""
    return f"{key.partition(' ')[0]} any"
