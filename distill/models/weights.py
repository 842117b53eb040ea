"""Reading weights safely: safetensors, or a checkpoint through `torch.load(weights_only=True)`,
never a plain pickle.
"""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from synthesis_kernels.errors import EchosetError

NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "teacher")
HARMLESS = [Namespace]
"""What training scripts leave beside weights and torch does not know: a plain holder of values,
which runs nothing.
"""
PREFIXES = ("module.", "_orig_mod.", "network.", "model.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, taken out of any `state_dict` nesting."""
    path = Path(path)
    if not path.is_file():
        raise EchosetError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EchosetError(
            f"{path} holds more than weights, and loading it would run code from the file. Where "
            "you trust it, open it "
            "once yourself and save model.state_dict() alone, best as .safetensors"
        ) from error
    except Exception as error:  # a damaged file fails anywhere in torch's reader
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise EchosetError(f"{path} cannot be read as weights: {reason}") from error
    for _ in NESTS:  # a file may nest a mapping in itself
        if isinstance(content, Mapping) and (
            nest := next((n for n in NESTS if isinstance(content.get(n), Mapping)), None)
        ):
            content = content[nest]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise EchosetError(
            f"{path} holds no weights: expected a state_dict, or one under any of "
            f"{', '.join(NESTS)}"
        )
    return {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy `weights` into `network`, wrapper prefixes stripped; whatever doesn't fit is named."""
    network.load_state_dict(check_fit(network, weights, source), strict=False)


def check_fit(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """`weights` under the names that `network` gives them, or an error that names the missing, the
    unexpected and the misshapen.
    """
    expected = network.state_dict()
    weights = _strip_prefixes(dict(weights), set(expected))
    # Checkpoints older than BatchNorm's batch counter lack it, and nothing here uses it.
    missing = [k for k in expected if k not in weights and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in weights if k not in expected]
    shapes = [
        f"{k} is {tuple(weights[k].shape)}, the model's is {tuple(v.shape)}"
        for k, v in expected.items()
        if k in weights and weights[k].shape != v.shape
    ]
    problems = [
        f"{title}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", shapes),
        )
        if names
    ]
    if problems:
        raise EchosetError(f"the weights in {source} do not fit the model; {'; '.join(problems)}")
    return weights


def _strip_prefixes(weights: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Drop wrappers' prefixes (DataParallel, torch.compile, ours) as long as every key carries one
    and fewer keys fit.
    """
    while weights and not expected & set(weights):
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), None)
        if prefix is None:
            break
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights
