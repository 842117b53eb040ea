"""Files of tensors that a manifest lists with their hashes: written, read and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from distill.files import hash_file, write_atomically
from synthesis_kernels.errors import EchosetError


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write the file in one rename and return its SHA-256; equal tensors give equal bytes."""
    data = to_safetensors({name: tensor.contiguous() for name, tensor in tensors.items()})
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path, digest: str | None, missing: str, changed: str) -> dict[str, Tensor]:
    """What the file holds, which is not copied from the disk before it is used. It is compared with
    its SHA-256, if one is given. `missing` and `changed` say what helps then.
    """
    if not path.is_file():
        raise EchosetError(f"{path} is missing, though manifest.json lists it; {missing}")
    if digest is not None:
        found = hash_file(path)
        if found != digest:
            raise EchosetError(
                f"{path} has changed since it was made: SHA-256 {found[:16]}…, expected "
                f"{digest[:16]}…; {changed}"
            )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise EchosetError(f"{path} cannot be read: {error}; it may be cut short") from error


def require_answers(
    tensors: Mapping[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    places: tuple[int, ...],
    path: Path,
    least: int = 1,
) -> Tensor:  # (*shape, *places) float16, or maps of h × w places
    """The file's answers; maps may be of any smaller size from `least` on, a network's own."""
    stored = tuple(tensors[name].shape[len(shape) :]) if name in tensors else places
    sides = zip(stored, places, strict=False)
    if len(stored) == len(places) and all(least <= side <= most for side, most in sides):
        places = stored
    return require_tensor(tensors, name, (*shape, *places), torch.float16, path)


def require_tensor(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype, path: Path
) -> Tensor:
    """The file's tensor of this name, shape and type."""
    if name not in tensors:
        raise EchosetError(f"{path} lacks '{name}'")
    tensor = tensors[name]
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise EchosetError(
            f"{path}: '{name}' is {tuple(tensor.shape)} {tensor.dtype}, expected {shape} {dtype}"
        )
    return tensor
