"""Reading weights safely: safetensors, or a checkpoint through `torch.load(weights_only=True)`,
never a plain pickle.
"""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.limits import require_room
from distill.models.archives import content_of, refuse_whole_network, unpacked_size
from distill.models.description import check_tensors
from distill.presence import require_file
from synthesis_kernels.backend import say_once
from synthesis_kernels.errors import EchosetError, reason_of

NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "teacher")
HARMLESS = (Namespace,)
"""What training scripts leave beside weights and torch does not know: a plain holder of values,
which runs nothing.
"""
AUXILIARY = "aux_classifier."
"""Of the names of torchvision's second head, which only training needs."""
PREFIXES = ("module.", "_orig_mod.", "network.", "model.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, taken out of any `state_dict` nesting. A file that has a hash
    of them is compared with it.
    """
    path = Path(path)
    require_file(path, "weights file")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            check_tensors(path, tensors)
            return tensors
        _require_checkpoint(path)
        with torch.serialization.safe_globals([*HARMLESS]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except EchosetError:
        raise
    except pickle.UnpicklingError as error:
        raise EchosetError(
            f"{path} holds more than weights, and loading it would run code from the file. Where "
            "you trust it, open it once yourself and save model.state_dict() alone, best as "
            ".safetensors"
        ) from error
    except Exception as error:  # a damaged file fails anywhere in torch's reader
        reason = reason_of(error)
        raise EchosetError(f"{path} cannot be read as weights: {reason}") from error
    weights: dict[str, Tensor] = {}
    innermost = _unnest(content)
    if isinstance(innermost, Mapping):
        for key, value in innermost.items():
            if isinstance(key, str) and isinstance(value, Tensor):
                _require_numbers(key, value, path)
                weights[key] = value
    if not weights:
        raise EchosetError(
            f"{path} holds no weights: expected a state_dict, or one under any of "
            f"{', '.join(NESTS)}"
        )
    return weights


def _require_checkpoint(path: Path) -> None:
    """Refuse a file that holds a network, and not its weights."""
    refuse_whole_network(path)
    content = content_of(path)
    if content == "checkpoint":
        require_room(unpacked_size(path), path, "what it unpacks to")
    if content in ("exported", "script"):
        raise EchosetError(
            f"{path} is a network with its weights, not weights alone: give it as the model, "
            "without weights"
        )


def _require_numbers(key: str, tensor: Tensor, path: Path) -> None:
    """Refuse a tensor that is none of plain numbers, each with bytes of its own in the file."""
    kind = None
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "sparse or nested"
    elif tensor.is_quantized:
        kind = "quantised"
    elif tensor.is_meta:
        kind = "without numbers, on the device meta"
    elif tensor.is_complex():
        kind = "of complex numbers"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        kind = "larger than its bytes"
    if kind is not None:
        raise EchosetError(
            f"{path}: {key:.80} is {kind}. Save the state_dict() of the network as it was trained, "
            "its tensors dense, on the CPU and not quantised"
        )


def _unnest(content: object) -> object:
    """What lies in a file's mapping under the names that training scripts use, or the content."""
    # So often at most: a file may nest a mapping in itself.
    for _ in NESTS:
        if not isinstance(content, Mapping):
            break
        for name in NESTS:
            if isinstance(content.get(name), Mapping):
                content = content[name]
                break
    return content


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy `weights` into `network`, wrapper prefixes stripped; whatever doesn't fit is named."""
    # The network's own state has its layers' versions, which torchvision's MNASNet asks for.
    state = network.state_dict()
    state.update(check_fit(network, weights, source))
    try:
        network.load_state_dict(state)
    except Exception as error:  # whatever torch says of a tensor that can't be copied
        raise EchosetError(
            f"the weights in {source} can't be taken over: {reason_of(error):.200}"
        ) from error


def check_fit(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """`weights` under the names that `network` gives them, or an error that names the missing, the
    unexpected and the misshapen.
    """
    expected = network.state_dict()
    weights = _strip_prefixes(dict(weights), set(expected))
    weights = _take_part(weights, set(expected), source)
    weights = _without_auxiliary(weights, set(expected), source)
    problems = {
        "missing": [key for key in _needed(expected) if key not in weights],
        "unexpected": [key for key in weights if key not in expected],
        "wrong shape": _misshapen(weights, expected),
    }
    described = [f"{title}: {_few(names)}" for title, names in problems.items() if names]
    if described:
        raise EchosetError(f"the weights in {source} do not fit the model; {'; '.join(described)}")
    return weights


def _without_auxiliary(
    weights: dict[str, Tensor], expected: set[str], source: str
) -> dict[str, Tensor]:
    """Drop the head that helped a segmentation network of torchvision's to train, where the
    network was built without it, as is usual.
    """
    extra = [key for key in weights if key.startswith(AUXILIARY) and key not in expected]
    if not extra or any(key.startswith(AUXILIARY) for key in expected):
        return weights
    say_once(f"{source}: left out the auxiliary head, which only training needs")
    return {key: tensor for key, tensor in weights.items() if key not in extra}


def require_tensors(network: nn.Module) -> None:
    """Refuse packed weights, which have neither gradient nor number."""
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor) or value.is_quantized:
            raise EchosetError(
                f"{name} of the network is packed or quantised, and no tensor of numbers: give the "
                "network as it was before it was quantised"
            )


def _misshapen(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What to say of each of the weights that has another shape than the model's."""
    sentences = []
    for key, tensor in expected.items():
        if key in weights and weights[key].shape != tensor.shape:
            shape = tuple(weights[key].shape)
            sentences.append(f"{key} is {shape}, the model's is {tuple(tensor.shape)}")
    return sentences


def _few(names: list[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    text = ", ".join(names[:most])
    if len(names) > most:
        text += f" and {len(names) - most} more"
    return text


def _strip_prefixes(weights: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Drop wrappers' prefixes (DataParallel, torch.compile, ours) as long as every key carries one
    and fewer keys fit.
    """
    while weights and not expected & set(weights):
        common = [p for p in PREFIXES if all(key.startswith(p) for key in weights)]
        if not common:
            break
        weights = {key.removeprefix(common[0]): tensor for key, tensor in weights.items()}
    return weights


def _needed(expected: Iterable[str]) -> list[str]:
    """All but BatchNorm's batch counters: older checkpoints lack them, and nothing here uses
    them.
    """
    return [key for key in expected if not key.endswith("num_batches_tracked")]


def _take_part(weights: dict[str, Tensor], expected: set[str], source: str) -> dict[str, Tensor]:
    """What lies under the one prefix under which the whole network does, as in a checkpoint of
    Lightning's that holds a loss beside it. All where there is no such prefix, or several.
    """
    needed = _needed(expected)
    if not needed or expected & weights.keys():
        return weights
    starts = [key.removesuffix(needed[0]) for key in weights if key.endswith(f".{needed[0]}")]
    whole = [start for start in starts if all(start + key in weights for key in needed)]
    if len(whole) != 1:
        return weights
    start = whole[0]
    part = {key.removeprefix(start): weights[key] for key in weights if key.startswith(start)}
    others = len(weights) - len(part)
    if others:
        say_once(f"{source}: took the weights under '{start}', and left out {others} others")
    return part
