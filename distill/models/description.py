"""What a model file says of itself: JSON in its metadata, with a hash of the file's tensors and one
of itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill.files import seal, unseal
from distill.plain_files import require_shallow
from synthesis_kernels.errors import EchosetError

# One key only: safetensors writes several in an order that changes from run to run.
METADATA_KEY = "echoset"
TENSORS = "tensors"
"""In a description: the hash of the file's tensors."""


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes, the same on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def new_metadata(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What goes with the tensors into their file."""
    told = seal({**values, TENSORS: hash_tensors(tensors)})
    return {METADATA_KEY: json.dumps(told, sort_keys=True)}


def read_description(path: str | Path) -> dict[str, Any] | None:
    """What a safetensors file says of itself, compared with its own hash; None of a file that holds
    weights alone.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise EchosetError(f"{path} is not a readable safetensors file: {error}") from error
    if METADATA_KEY not in metadata:
        if any(f'"{TENSORS}": ' in text for text in metadata.values()):
            raise _changed(path, "description's name")
        return None
    try:
        told = json.loads(metadata[METADATA_KEY])
        require_shallow(told)
        if not isinstance(told, dict):
            raise ValueError("it holds no JSON object")
    except (ValueError, RecursionError) as error:
        raise EchosetError(
            f"{path}: its '{METADATA_KEY}' metadata is not a model description ({error})"
        ) from error
    try:
        return unseal(told)
    except ValueError as error:
        raise _changed(path, "description") from error


def check_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a safetensors file whose tensors are not those of which it has the hash, if any."""
    told = read_description(path) or {}
    if TENSORS in told and told[TENSORS] != hash_tensors(tensors):
        raise _changed(path, "tensors")


def _changed(path: str | Path, part: str) -> EchosetError:
    return EchosetError(
        f"{path} has changed since it was written, in its {part}. Copy or make it again; who "
        "changed it on purpose saves it anew by save_classifier"
    )
