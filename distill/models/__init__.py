"""Networks by name, of whatever kind, built for any channels, classes and size."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import nn

from distill.models.classifier import Classifier, ModelSpec, as_found, read_spec, save_classifier
from distill.models.kinds import comes_trained, kind_of
from distill.models.kinds.kind import Constructor
from distill.models.weights import check_fit, load_weights, read_weights
from synthesis_kernels.errors import EchosetError

__all__ = [
    "Classifier",
    "ModelSpec",
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
        torch.default_generator.manual_seed(seed)  # that of the CPU alone, where networks are built
        network = _construct(constructor, spec)
    if not isinstance(network, nn.Module):
        raise EchosetError(
            f"model '{spec.model}' made a {type(network).__name__}, not a torch.nn.Module"
        )
    return Classifier(network, spec)


def load_classifier(path: str | Path) -> Classifier:
    """Rebuild a classifier from one file that `save_classifier` wrote."""
    if not Path(path).is_file():
        raise EchosetError(f"no model file at {path}")
    spec = read_spec(path) if Path(path).suffix == ".safetensors" else None
    if spec is None:
        raise EchosetError(
            f"{path} holds weights without a description of the model: name it with model and "
            "weights"
        )
    if kind_of(spec.model).runs_user_code:
        # The name comes from whoever wrote the file: importing and calling it would run what they
        # like.
        raise EchosetError(
            f"{path} asks to import '{spec.model}', which would run code named by the file. Where "
            "you trust it, name the "
            "network yourself: its import path as the model, and this file as its weights"
        )
    weights = read_weights(path)
    if (outline := _outline(spec)) is not None:
        check_fit(outline, weights, str(path))
    classifier = build_classifier(spec)
    load_weights(classifier.network, weights, str(path))
    return classifier


def _outline(spec: ModelSpec) -> nn.Module | None:
    """The network's shapes without their memory, of which a file from elsewhere may ask for any
    amount.

    None where the constructor looks at values (torchvision's regnets do), or can't build it at all.
    """
    try:
        with torch.device("meta"):
            return build_classifier(spec).network
    except EchosetError:
        return None


def _construct(constructor: Constructor, spec: ModelSpec) -> nn.Module:
    """Call with the user's arguments, type-checked, plus what the spec knows under the names the
    signature uses.
    """
    parameters = inspect.signature(constructor).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    # A partial's bound keywords (the depth in wrn-40-2) belong to the name and are not the user's
    # to set.
    bound = set(constructor.keywords) if isinstance(constructor, partial) else set()
    unknown = [k for k in spec.arguments if k in bound or (k not in parameters and not open_ended)]
    if unknown:
        accepted = [
            k for k, p in parameters.items() if p.kind is not p.VAR_KEYWORD and k not in bound
        ]
        raise EchosetError(
            f"model '{spec.model}' takes no argument {', '.join(unknown)}; it takes "
            f"{', '.join(accepted) or 'none'}"
        )
    known = {
        "channels": spec.channels,
        "in_channels": spec.channels,
        "in_chans": spec.channels,
        "size": spec.size,
    }
    known |= {"classes": spec.classes, "num_classes": spec.classes}
    known = {k: v for k, v in known.items() if k in parameters and k not in bound}
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


def _typed(constructor: Constructor, spec: ModelSpec) -> dict:
    """The user's arguments parsed against the constructor's annotations, as the command line would
    parse them.
    """
    if not spec.arguments or isinstance(constructor, partial):
        return spec.arguments
    import jsonargparse

    try:
        hints = get_type_hints(
            constructor.__init__ if inspect.isclass(constructor) else constructor
        )
    except Exception:  # annotations that can't be resolved leave the values as they are
        hints = {}
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    try:
        for name in spec.arguments:
            parser.add_argument(f"--{name}", type=hints.get(name, Any))
        return vars(parser.instantiate(parser.parse_object(spec.arguments)))
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise EchosetError(
            f"model '{spec.model}', argument {' '.join(str(error).split())}"
        ) from error
