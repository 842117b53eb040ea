"""Options of the wrong type are refused where they are written, and by name."""

import dataclasses

import numpy as np
import pytest

from distill.brief import Brief
from distill.options import DistillOptions, StudentOptions, StudyOptions, ViewOptions
from distill.runtime import Runtime
from inversion.cli import schema  # noqa: F401  # every class of options
from inversion.options import AnswerOptions, GeneratorOptions, SynthesisOptions, TeacherOptions
from synthesis_kernels.errors import EchosetError


def all_options(kind=Brief):
    """Every class of options."""
    for below in kind.__subclasses__():
        yield below
        yield from all_options(below)


@pytest.mark.parametrize(
    "kind, given, message",
    [
        (ViewOptions, {"flip": "no"}, "flip must be True or False, got 'no'"),
        (ViewOptions, {"rotate": "12"}, "rotate must be a number, got '12'"),
        (ViewOptions, {"mixup": True}, "mixup must be a number, got True"),
        (GeneratorOptions, {"latent": 64.0}, "latent must be a whole number, got 64.0"),
        (
            GeneratorOptions,
            {"learning": "metta"},
            "learning must be one of meta, plain, got 'metta'; did you mean meta?",
        ),
        (SynthesisOptions, {"generator": {}}, "generator must be GeneratorOptions(…), got {}"),
        (DistillOptions, {"views": None}, "views must be ViewOptions(…), got None"),
        (StudyOptions, {"methods": "at"}, "methods must be a tuple, got 'at'"),
        (TeacherOptions, {"mean": 0.5}, "mean must be a tuple, got 0.5"),
        (AnswerOptions, {"per_image": "3"}, "per_image must be a whole number or None, got '3'"),
        (Runtime, {"seed": None}, "seed must be a whole number, got None"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(kind, given, message):
    with pytest.raises(EchosetError) as refused:
        kind(**given)
    assert str(refused.value) == message


@pytest.mark.parametrize("kind", sorted(all_options(), key=lambda kind: kind.__name__))
def test_every_field_of_every_class_is_looked_at(kind):
    kind()
    for field in dataclasses.fields(kind):
        if not str(field.type).startswith(("dict", "Mapping")):
            with pytest.raises(EchosetError, match=rf"^{field.name} must be "):
                kind(**{field.name: object()})


def test_numbers_of_numpy_and_paths_are_taken(tmp_path):
    assert ViewOptions(rotate=np.float32(3), operations=np.int64(2)).operations == 2
    assert StudentOptions(weights=tmp_path / "w.safetensors").weights.name == "w.safetensors"
    assert StudyOptions(methods=["at"], seeds=[0]).methods == ["at"]
