"""Any classifier as a teacher: by name, by file, by import path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.models import (
    Classifier,
    ModelSpec,
    build_classifier,
    load_classifier,
    read_spec,
)
from distill.models.classifier import CONTRACT, OUTPUT
from distill.models.contract import check_contract
from distill.models.kinds import Kind, kind_of
from distill.models.weights import load_weights, read_weights
from distill.names import name_classes, read_names
from distill.presence import looks_like_file, require_file
from distill.ranges import require_options
from inversion.inspection import check_numbers
from inversion.options import TeacherOptions, TeacherViewOptions
from inversion.teacher_file import as_named, spell_out
from synthesis_kernels.errors import EchosetError

ASSETS = Path(__file__).parent / "assets"
MNIST_SLICE = (
    ASSETS / "mnist_test_slice.npz"
)  # every fifth image of the MNIST test set, to judge the bundled teacher's students
BUNDLED = {
    "mnist": ASSETS / "mnist_convnet32.safetensors",
    "cifar10": ASSETS / "cifar10_wrn40x2.safetensors",
    "cifar10-small": ASSETS / "cifar10_convnet32.safetensors",
    "cifar10-gn": ASSETS / "cifar10_resnetgn16.safetensors",
    "cifar10-vit": ASSETS / "cifar10_vit96x3.safetensors",
    "camvid": ASSETS / "camvid_unet16.safetensors",
}


def load_teacher(
    options: TeacherOptions = TeacherOptions(), untrained: bool = False, trust: bool = False
) -> Classifier:
    """Build the teacher that `options` describe, frozen and in evaluation mode; one that has
    learnt, unless `untrained`.

    Some kinds of network come with their weights, or know where theirs are published; others need a
    file of them. With `trust` the code is run that a file names, or a set.
    """
    require_options(options, TeacherOptions, "options")
    named = spell_out(options, BUNDLED, trust)
    teacher = _load(named.options, untrained, trust)
    named.check(teacher)
    teacher.named = as_named(named.options)
    return teacher.eval().requires_grad_(False)


def _load(options: TeacherOptions, untrained: bool, trust: bool) -> Classifier:
    """The network that the options name, with its weights."""
    path = BUNDLED.get(options.model, Path(options.model))
    told = _description(options.weights)
    names = None if options.names is None else read_names(options.names)
    published = None
    if path.suffix == ".safetensors" and read_spec_if_file(path):
        teacher = load_classifier(path, trust)
        _check_known(options, teacher.spec, path, ("arguments", *CONTRACT))
    else:
        kind = kind_of(options.model, BUNDLED)
        published = published_name(options, kind)
        if told:
            _check_known(options, told, str(options.weights), CONTRACT)
            known = {"notes": told.notes}
            contract = {key: getattr(told, key) for key in CONTRACT}
        else:
            known = kind.contract(options.model, options.arguments, published)
            counted = {"classes": len(names)} if names else {}
            contract = complete_contract(options, counted | dict(known))
        check_contract(contract, options.model)
        contract["notes"] = known.get("notes", {})
        arguments = {**known.get("arguments", {}), **options.arguments}
        teacher = build_classifier(ModelSpec(options.model, arguments, **contract))
        if (options.weights is None or published) and not untrained:
            _load_published(teacher, kind, published)
    if options.weights is not None and not published:
        load_weights(teacher.network, read_weights(options.weights), options.weights)
        if told and (told.mean, told.std) != (teacher.spec.mean, teacher.spec.std):
            raise EchosetError(
                f"{options.weights} was trained with mean {told.mean} and std {told.std}, {path} "
                f"with {teacher.spec.mean} and {teacher.spec.std}; give the weights' own network "
                "as the model"
            )
    check_numbers(teacher)
    _settle_output(teacher, told, options)
    if names is not None:
        teacher.spec = name_classes(teacher.spec, names)
    return teacher


def _settle_output(teacher: Classifier, *told: ModelSpec | TeacherOptions | None) -> None:
    """Let the network's answers be read as is told, the last one first, or else as is found."""
    for each in told:
        values = {name: getattr(each, name, None) for name in OUTPUT}
        known = {name: value for name, value in values.items() if value is not None}
        teacher.spec = replace(teacher.spec, **known)
    teacher.settle()


def _description(weights: str | None) -> ModelSpec | None:
    """What a file of weights says of its network, if it says anything."""
    path = Path(weights or "")
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    return read_spec(path)


def published_name(options: TeacherOptions, kind: Kind) -> str | None:
    """The name of the published weights that were asked for; None for a file of them, or none."""
    weights = options.weights
    if weights is None or looks_like_file(weights) or Path(weights).is_file():
        return None
    names = kind.weight_names(options.model)
    if names and weights not in names and not Path(weights).suffix:
        raise EchosetError(
            f"'{options.model}' has no published weights named '{weights}'; it has "
            f"{', '.join(names)}. Or give a file"
        )
    return weights if weights in names else None


def complete_contract(options: TeacherOptions, known: Mapping[str, Any]) -> dict[str, Any]:
    """The options' contract; where one was left at its default, what the kind knows of the name."""
    usual = TeacherOptions()
    contract = {}
    for key in CONTRACT:
        value = getattr(options, key)
        contract[key] = known.get(key, value) if value == getattr(usual, key) else value
    return contract


def _load_published(teacher: Classifier, kind: Kind, published: str | None) -> None:
    """Give a teacher without a file of weights those that its kind has for it; refuse one that has
    none.
    """
    spec = teacher.spec
    if kind.comes_trained:
        return
    if kind.weights is None:
        raise EchosetError(
            f"'{spec.model}' names a network that was never trained: give the file of its "
            "weights, too (for a teacher --teacher.weights FILE)"
        )
    load_weights(
        teacher.network,
        kind.weights(spec.model, spec.arguments, published),
        f"the published weights of {spec.model}",
    )


def _check_known(
    options: TeacherOptions, spec: ModelSpec, file: str | Path, names: tuple[str, ...]
) -> None:
    """Refuse to be told otherwise what a file says of itself; an option at its default tells
    nothing.
    """
    usual = TeacherOptions()
    for name in names:
        given = getattr(options, name)
        own = getattr(spec, name)
        if given not in (own, getattr(usual, name)):
            raise EchosetError(
                f"{file} says of itself that its {name} is {own}, not {given}; leave {name} away"
            )


def read_spec_if_file(path: Path) -> ModelSpec | None:
    """The spec in a safetensors file; a name that ends so but leads nowhere is an error of its
    own.
    """
    require_file(path, "model file")
    spec = read_spec(path)
    if spec is None:
        raise EchosetError(
            f"{path} holds weights alone: give the network's name as the model and this file as "
            "its weights"
        )
    return spec


def trained_views(spec: ModelSpec) -> TeacherViewOptions:
    """How the teacher's training images were shifted, mirrored and cut out, by the notes in its
    file; a small shift without any.
    """
    told = spec.notes.get("views")
    if not isinstance(told, dict):
        return TeacherViewOptions()
    shift, flip, cutout = told.get("shift", 0.0), told.get("flip", False), told.get("cutout", 0.0)
    try:
        return TeacherViewOptions(shift, flip, cutout)
    except EchosetError as error:
        raise EchosetError(
            f"the teacher file's notes on its views: {error}; set --synthesis.objective.views, or "
            "save the teacher with notes that are right"
        ) from error
