"""Networks by name, of whatever kind, built for any channels, classes and size."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import nn

from distill.models.classifier import Classifier, ModelSpec, as_found
from distill.models.kinds import comes_trained, kind_of
from distill.models.kinds.kind import Constructor
from distill.models.outline import outline_of, require_room_for_answers
from distill.models.spec_files import read_spec, save_classifier
from distill.models.weights import check_fit, load_weights, read_weights
from distill.models.wrapping import as_classifier
from distill.plain_files import refuse_classes
from distill.presence import require_file
from distill.sizes import Size
from synthesis_kernels.errors import EchosetError

__all__ = [
    "Classifier",
    "ModelSpec",
    "as_classifier",
    "as_found",
    "build_classifier",
    "comes_trained",
    "load_classifier",
    "read_spec",
    "save_classifier",
]


def build_classifier(spec: ModelSpec, seed: int = 0) -> Classifier:
    """Build `spec.model` with fresh weights drawn from `seed`; the global random state is left as
    it was.
    """
    constructor = kind_of(spec.model).constructor(spec.model)
    with torch.random.fork_rng(devices=[]):
        # That of the CPU alone, where networks are built.
        torch.default_generator.manual_seed(seed)
        network = _construct(constructor, spec)
    if not isinstance(network, nn.Module):
        raise EchosetError(
            f"model '{spec.model}' made a {type(network).__name__}, not a torch.nn.Module"
        )
    return Classifier(network, spec)


def load_classifier(path: str | Path, trust: bool = False) -> Classifier:
    """Rebuild a classifier from one file that `save_classifier` wrote; with `trust` even where it
    names an import path, whose code is then run.
    """
    require_file(path, "model file")
    spec = read_spec(path) if Path(path).suffix == ".safetensors" else None
    if spec is None:
        raise EchosetError(
            f"{path} holds weights without a description of the model: name it with model and "
            "weights"
        )
    if kind_of(spec.model).runs_user_code and not trust:
        # The name comes from whoever wrote the file: importing and calling it would run what they
        # like.
        raise EchosetError(
            f"{path} asks to import '{spec.model}', which could run code named by the file. Where "
            f"you trust it, add --trust, or name the network yourself: {spec.model} as the model, "
            "and this file as its weights"
        )
    weights = read_weights(path)
    shapes = outline_of(spec, build_classifier)
    if shapes is not None:
        check_fit(shapes, weights, str(path))
    classifier = build_classifier(spec)
    load_weights(classifier.network, weights, str(path))
    require_room_for_answers(classifier, path)
    return classifier


def _construct(constructor: Constructor, spec: ModelSpec) -> nn.Module:
    """Call with the user's arguments, type-checked, plus what the spec knows under the names the
    signature uses.
    """
    parameters = inspect.signature(constructor).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    bound: set[str] = set()
    if isinstance(constructor, partial):
        # They belong to the name (the depth in wrn-40-2) and are not the user's to set.
        bound = set(constructor.keywords)
    named = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    free = [name for name in named if name not in bound]
    unknown = [name for name in spec.arguments if name not in free]
    if open_ended:
        unknown = [name for name in unknown if name in bound]
    if unknown:
        raise EchosetError(
            f"model '{spec.model}' takes no argument {', '.join(unknown)}; it takes "
            f"{', '.join(free) or 'none'}"
        )
    known = {name: value for name, value in _known_arguments(spec).items() if name in free}
    if open_ended and isinstance(constructor, partial):
        known["num_classes"] = spec.classes  # torchvision's builders take it through **kwargs
    arguments = known | _typed(constructor, spec)
    try:
        return constructor(**arguments)
    except EchosetError:
        raise
    except Exception as error:
        raise EchosetError(
            f"model '{spec.model}' could not be built with {arguments}: {type(error).__name__}: "
            f"{error}"
        ) from error


def _known_arguments(spec: ModelSpec) -> dict[str, Size]:
    """What the spec knows, under each name that some network has for it."""
    return {
        "channels": spec.channels,
        "in_channels": spec.channels,
        "in_chans": spec.channels,
        "size": spec.size,
        "classes": spec.classes,
        "num_classes": spec.classes,
    }


def _typed(constructor: Constructor, spec: ModelSpec) -> dict[str, Any]:
    """The user's arguments parsed against the constructor's annotations, as the command line would
    parse them.
    """
    if not spec.arguments or isinstance(constructor, partial):
        return spec.arguments
    import jsonargparse

    try:
        function = constructor.__init__ if inspect.isclass(constructor) else constructor
        hints = get_type_hints(function)
    except Exception:  # annotations that can't be resolved leave the values as they are
        hints = {}
    refuse_classes(spec.arguments, f"arguments of model '{spec.model}'")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    try:
        for name in spec.arguments:
            parser.add_argument(f"--{name}", type=hints.get(name, Any))
        return vars(parser.instantiate(parser.parse_object(spec.arguments)))
    except (jsonargparse.ArgumentError, ValueError, TypeError, OverflowError) as error:
        raise EchosetError(
            f"model '{spec.model}', argument {' '.join(str(error).split())}"
        ) from error
