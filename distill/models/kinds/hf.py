"""Image classifiers and segmentation networks of Hugging Face: `hf:microsoft/resnet-18`, or a
folder of `save_pretrained`, `hf:./my_net`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distill.models.kinds.kind import Constructor, Kind
from distill.sizes import settle_size
from distill.tasks import DENSE
from synthesis_kernels.errors import EchosetError, reason_of

PREFIX = "hf:"
PREPROCESSING = "preprocessor_config.json"


def _transformers() -> Any:
    """The library; it imports torchvision, which may need mending first."""
    import distill.torchvision_shim  # noqa: F401

    try:
        import transformers
    except ImportError as error:
        raise EchosetError(
            f"a name that begins with {PREFIX} needs transformers: pip install 'echoset[hf]' "
            f"({error})"
        ) from error
    return transformers


def takes(name: str) -> bool:
    """Whether the name says that it is Hugging Face's."""
    return name.startswith(PREFIX)


def _fetch(name: str, function: Any, *arguments: Any, **settings: Any) -> Any:
    """What transformers reads from a folder or the hub; where it can't, the message says why."""
    inner = name.removeprefix(PREFIX)
    try:
        return function(inner, *arguments, **settings)
    except Exception as error:  # whatever the hub, its client or a damaged file raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EchosetError(
            f"'{name}' could not be read as a network of Hugging Face's ({reason:.300}). "
            "Where there is no network, download it beforehand (hf download "
            f"{inner}), or give a folder that save_pretrained wrote: {PREFIX}FOLDER"
        ) from error


def _configuration(name: str) -> Any:
    """What the network is; code that a repository brings is never run."""
    inner = name.removeprefix(PREFIX)
    if inner.startswith((".", "/", "~")) and not Path(inner).is_dir():
        raise EchosetError(f"'{name}': no folder at {inner}")
    read = _transformers().AutoConfig.from_pretrained
    return _fetch(name, read, trust_remote_code=False)


def constructor(name: str) -> Constructor:
    """What builds the network with fresh weights."""
    configuration = _configuration(name)
    # What transformers keeps for itself may name code, such as a kernel of the hub.
    own = [key for key in dir(configuration) if key.startswith("_") or "implementation" in key]

    def build(channels: int, classes: int, **arguments: Any) -> nn.Module:
        settings = {"num_channels": channels, **arguments}
        unknown = [key for key in settings if key in own or not hasattr(configuration, key)]
        if set(unknown) & arguments.keys():
            raise EchosetError(f"model '{name}' takes no argument {', '.join(unknown)}")
        for key, value in settings.items():
            if key not in unknown:
                setattr(configuration, key, value)
        if classes != configuration.num_labels:
            configuration.num_labels = classes
        make = _class_of(configuration).from_config
        return make(configuration, trust_remote_code=False)

    return build


def contract(name: str, arguments: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """Classes and channels by its configuration; size, mean and std by how its images are
    prepared.
    """
    try:
        return _contract(name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = reason_of(error)
        raise EchosetError(f"what '{name}' says of its images can't be right: {reason}") from error


def _segments(configuration: Any) -> bool:
    """Whether the network was saved as one that answers with maps."""
    saved_as = getattr(configuration, "architectures", None) or []
    return any(str(each).endswith("ForSemanticSegmentation") for each in saved_as)


def _class_of(configuration: Any) -> Any:
    """What builds the networks of this configuration."""
    library = _transformers()
    if _segments(configuration):
        return library.AutoModelForSemanticSegmentation
    return library.AutoModelForImageClassification


def _contract(name: str) -> dict[str, Any]:
    configuration = _configuration(name)
    classes = [str(configuration.id2label[place]) for place in sorted(configuration.id2label)]
    known: dict[str, Any] = {
        "classes": configuration.num_labels,
        "channels": getattr(configuration, "num_channels", 3),
        "notes": {"class_names": classes},
    }
    if _segments(configuration):
        known["task"] = DENSE
    prepared = _preprocessing(name)
    size = _size_of(prepared) or settle_size(getattr(configuration, "image_size", None))
    if isinstance(size, int | tuple):
        known["size"] = size
    if prepared.get("do_normalize", True) and "image_mean" in prepared:
        known["mean"] = tuple(prepared["image_mean"])
        known["std"] = tuple(prepared["image_std"])
    return known


def _preprocessing(name: str) -> Mapping[str, Any]:
    """How images are prepared; empty where nothing is said of it."""
    _transformers()
    from transformers.utils.hub import cached_file

    file = _fetch(name, cached_file, PREPROCESSING, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return {}
    try:
        told = json.loads(Path(file).read_text())
    except (ValueError, RecursionError) as error:
        raise EchosetError(f"{file} is damaged ({error})") from error
    return told if isinstance(told, dict) else {}


def _size_of(prepared: Mapping[str, Any]) -> Any:
    """The images' size after the last crop, as far as it is told."""
    told = prepared.get("size")
    if prepared.get("do_center_crop", True) and "crop_size" in prepared:
        told = prepared["crop_size"]
    if isinstance(told, Mapping):
        edge = told.get("shortest_edge")
        both = (told.get("height", edge), told.get("width", edge))
        told = settle_size(both) if all(isinstance(side, int) for side in both) else None
    return told if isinstance(told, int | tuple) else None


def weights(name: str, arguments: Mapping[str, Any], weights: str | None) -> Mapping[str, Tensor]:
    """The weights in the folder, or on the hub."""
    read = _class_of(_configuration(name)).from_pretrained
    return _fetch(name, read, trust_remote_code=False).state_dict()


KIND = Kind(
    form="a name or folder of Hugging Face's such as hf:microsoft/resnet-18",
    takes=takes,
    constructor=constructor,
    contract=contract,
    weights=weights,
)
