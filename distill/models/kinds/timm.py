"""Networks of timm by its names: `timm:resnet18`, with a tag of weights `timm:resnet18.a1_in1k`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from distill.models.kinds import suggest_several
from distill.models.kinds.kind import Constructor, Kind
from distill.sizes import Size, settle_size
from synthesis_kernels.errors import EchosetError, reason_of

PREFIX = "timm:"
SYNONYMS = {"channels": "in_chans", "size": "img_size", "classes": "num_classes"}
"""Our words for what a network takes, and timm's."""
REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""Arguments that would read a file or reach a network while the network is built."""


def _timm() -> Any:
    """The library; timm imports torchvision, which may need mending first."""
    import distill.torchvision_shim  # noqa: F401

    try:
        import timm
    except ImportError as error:
        raise EchosetError(
            f"a name that begins with {PREFIX} needs timm: pip install 'echoset[timm]' ({error})"
        ) from error
    return timm


def _checked(name: str) -> str:
    """The name within timm, if timm has such a network."""
    timm = _timm()
    # Such as resnet18.a1_in1k.
    inner = name.removeprefix(PREFIX)
    if not timm.is_model(inner):
        raise EchosetError(f"timm has no network named '{inner}'.{suggest_several(name, names())}")
    network, _, tag = inner.partition(".")
    known = timm.list_pretrained(f"{network}.*")
    if tag and inner not in known:
        raise EchosetError(
            f"timm has no weights named '{inner}'; it has {', '.join(known) or 'none'}"
        )
    return inner


def _description(name: str) -> Any:
    """What timm says of the images and the weights that belong to a name."""
    return _timm().get_pretrained_cfg(_checked(name))


def _size_of(description: Any) -> Size:
    """Of the images that belong to a name."""
    size: Size = settle_size(description.input_size[1:])
    return size


def takes(name: str) -> bool:
    """Whether the name says that it is timm's."""
    return name.startswith(PREFIX)


def names() -> list[str]:
    """All of timm's networks; none without timm."""
    try:
        return [PREFIX + name for name in _timm().list_models()]
    except EchosetError:
        return []


def constructor(name: str) -> Constructor:
    """What builds timm's network with fresh weights."""
    inner = _checked(name)
    description = _description(name)

    def build(channels: int, size: Size, classes: int, **arguments: Any) -> nn.Module:
        refused = [key for key in arguments if key in REFUSED]
        if refused:
            raise EchosetError(
                f"model '{name}' takes no argument {', '.join(refused)}; weights come from "
                "--teacher.weights FILE"
            )
        sizes: dict[str, Size] = {"in_chans": channels, "num_classes": classes}
        # A transformer's number of patches is fixed when it is built.
        if description and description.fixed_input_size and size != _size_of(description):
            sizes["img_size"] = size
        return _timm().create_model(inner, pretrained=False, **(sizes | arguments))

    return build


def contract(name: str, arguments: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """What timm says of the network's images, and above it what the user's arguments say."""
    description = _description(name)
    known: dict[str, Any] = {}
    if description:
        known["channels"] = description.input_size[0]
        if description.num_classes >= 2:  # some have no classes, only features
            known["classes"] = description.num_classes
        known["mean"] = tuple(description.mean)
        known["std"] = tuple(description.std)
    for key, synonym in SYNONYMS.items():
        given = settle_size(arguments.get(key, arguments.get(synonym)))
        if isinstance(given, int | tuple):
            known[key] = given
    if description and "size" not in known:
        known["size"] = _size_of(description)
    return known


def weights(name: str, arguments: Mapping[str, Any], weights: str | None) -> Mapping[str, Tensor]:
    """The weights that timm's authors published under a name."""
    description = _description(name)
    if not (description and description.has_weights):
        raise EchosetError(
            f"timm has no trained weights of '{name}': give your own with --teacher.weights FILE"
        )
    try:
        network = _timm().create_model(_checked(name), pretrained=True)
    except Exception as error:  # whatever the hub, its client or the network between raises
        reason = reason_of(error)
        hub = description.hf_hub_id or description.url
        raise EchosetError(
            f"no network, or the hub did not answer: the weights of '{name}' could not be fetched "
            f"({reason:.200}). Give --teacher.weights FILE, or download them beforehand where "
            f"there is a network: {hub}"
        ) from error
    return network.state_dict()


KIND = Kind(
    form="a name of timm's such as timm:resnet18",
    takes=takes,
    constructor=constructor,
    names=names,
    contract=contract,
    weights=weights,
)
