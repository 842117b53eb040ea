"""A classifier's file: its weights, and the spec that rebuilds it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save as to_safetensors

from distill.files import write_atomically
from distill.models.classifier import OUTPUT, Classifier, ModelSpec
from distill.models.contract import check_contract
from distill.models.description import METADATA_KEY, TENSORS, new_metadata, read_description
from synthesis_kernels.errors import EchosetError

LONGEST = 255
"""Letters of a file's name."""


def save_classifier(classifier: Classifier, path: str | Path, half: bool = False) -> None:
    """Write weights and spec as one safetensors file, with a hash of each; equal weights give equal
    bytes.

    Weights that several layers share are written for each of them. With `half`, matrices and
    convolutions are rounded to 16 bits: half the file. BatchNorm's statistics never are.
    """
    tensors = {}
    for name, tensor in classifier.network.state_dict().items():
        stored = tensor.detach().cpu().contiguous().clone()
        tensors[name] = stored.half() if half and tensor.ndim > 1 else stored
    values = asdict(classifier.spec)
    for name in OUTPUT:
        if values[name] is None:  # files say no more than they have to
            del values[name]
    write_atomically(Path(path), to_safetensors(tensors, new_metadata(values, tensors)))


def read_spec(path: str | Path) -> ModelSpec | None:
    """The spec stored in a safetensors file, or None if the file holds weights alone. The tensors
    are compared with their hash by `read_weights`.
    """
    values = read_description(path)
    if values is None:
        return None
    values.pop(TENSORS, None)
    try:
        spec = ModelSpec(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
    except (ValueError, TypeError, KeyError) as error:
        raise EchosetError(
            f"{path}: its '{METADATA_KEY}' metadata is not a model description ({error})"
        ) from error
    for name, kind in (("model", str), ("arguments", dict), ("notes", dict)):
        if not isinstance(getattr(spec, name), kind):
            raise EchosetError(
                f"{path}: '{name}' of its '{METADATA_KEY}' metadata is not a {kind.__name__}"
            )
    if max(map(len, spec.model.split("/"))) > LONGEST or not spec.model.isprintable():
        raise EchosetError(f"{path}: the model that it names, {spec.model!r:.40}, can't be a name")
    check_contract(asdict(spec), str(path))
    return spec
