"""Walks that can't be."""

import re
from dataclasses import replace

import pytest
import torch
from walking import (
    all_targets,
    pictures,
    random_linear,
)

from inversion.options import BoundaryOptions
from inversion.sources.boundary import attack_boundaries
from synthesis_kernels.errors import EchosetError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("steps", 0),
            ("first_step", 0.0),
            ("first_step", -1.0),
            ("first_step", float("nan")),
            ("growth", 0.9),
        ),
        *(
            ("growth", float("inf")),
            ("close", 0.0),
            ("close", -2.0),
            ("deeper", 0.0),
            ("deeper", float("nan")),
        ),
    ],
)
def test_options_are_refused_by_name(name, value):
    with pytest.raises(EchosetError, match=f"boundary.{name} must be .*{re.escape(str(value))}"):
        replace(BoundaryOptions(), **{name: value})


@pytest.mark.parametrize(
    ("images", "targets", "says"),
    [
        (pictures(0, 2).float(), all_targets(2, 3), "images must be uint8"),
        (pictures(0, 2)[:, :, 1:], all_targets(2, 3), "images must be uint8, each of shape"),
        (pictures(0, 2), all_targets(3, 3), r"targets must be int64 of shape \(2, T\)"),
        (pictures(0, 2), torch.zeros(2).long(), "targets must be int64"),
        (pictures(0, 2), all_targets(2, 3).float(), "targets must be int64"),
        (pictures(0, 2), all_targets(2, 4), "targets must lie in 0 to 2, got 0 to 3"),
        (pictures(0, 2), all_targets(2, 3) - 1, "targets must lie in 0 to 2, got -1 to 1"),
        (pictures(0, 2), torch.zeros(2, 0).long(), "one target at least"),
    ],
)
def test_what_cannot_be_walked_is_refused(images, targets, says):
    with pytest.raises(EchosetError, match=says):
        attack_boundaries(random_linear(0, 3), images, targets)
