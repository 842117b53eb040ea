"""Synthesis on a scale of seconds, for `tools/golden.py` and for the tests."""

from __future__ import annotations

from inversion import SynthesisOptions
from inversion.options import AdversaryOptions, GeneratorOptions, ObjectiveOptions

TINY = SynthesisOptions(
    images=30,
    batch=40,
    calls=6,
    held_out=0.34,
    generator=GeneratorOptions(
        conditioning=2.0,
        width=8,
        inner_steps=3,
        learning_rate=0.01,
        latent_rate=0.1,
        meta_rate=0.05,
    ),
    objective=ObjectiveOptions(bn=2.0, classes=5.0, adversary_after=2),
    adversary=AdversaryOptions(steps=3, batch=32),
)
"""The whole method in two seconds."""
