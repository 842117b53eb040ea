"""A SHA-256 over tensors and figures: names, types, shapes, bytes and digits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Thing = dict[str, Any]
"""Something to hash: tensors or figures by their names."""


def read_tensors(folder: Path) -> list[Thing]:
    """Every safetensors file of a folder, in the order of their names."""
    return [load_file(path) for path in sorted(folder.glob("*.safetensors"))]


def digest(things: Sequence[Thing]) -> str:
    """SHA-256 over everything, one value after another in the order of their names."""
    if not any(things):
        raise ValueError("a run left nothing to hash")
    total = sha256()
    for thing in things:
        for name in sorted(thing):
            total.update(f"{name} {content(thing[name])}\n".encode())
        total.update(b"\n")
    return total.hexdigest()


def content(value: Any) -> str:
    """A tensor's type, shape and hash, or a figure as JSON, which keeps every digit."""
    if not isinstance(value, Tensor):
        return json.dumps(value, sort_keys=True)
    values = value.detach().cpu().reshape(-1).contiguous()
    bytes_of_it = values.view(torch.uint8).numpy().tobytes()
    return f"{value.dtype} {tuple(value.shape)} {sha256(bytes_of_it).hexdigest()}"
