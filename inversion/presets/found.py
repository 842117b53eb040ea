"""A preset's options, for Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

from distill.models import Classifier
from distill.options import DistillOptions, StudentOptions
from inversion.cli.schema import DemoRun
from inversion.options import SynthesisOptions
from inversion.presets import PresetName, choose
from synthesis_kernels.errors import EchosetError


@dataclass(frozen=True)
class Preset:
    """Options that go together, but for the pictures that `echoset demo` collects beside a set."""

    name: str
    synthesis: SynthesisOptions
    student: StudentOptions
    distillation: DistillOptions


def find_preset(name: str | Classifier) -> Preset:
    """The preset of this name, or the one that the command line takes for this teacher."""
    from inversion.cli.grammar import read_options

    if isinstance(name, Classifier):
        spec = name.spec
        name = choose(spec.task, spec.channels, spec.side, spec.notes)[0]
    if name not in get_args(PresetName):
        raise EchosetError(f"no preset '{name}'; there are {', '.join(get_args(PresetName))}")
    run = cast(DemoRun, read_options("demo", [], name))
    return Preset(name, run.synthesis, run.student, run.distillation)
