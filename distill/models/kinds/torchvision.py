"""Torchvision's classifiers and segmentation networks by their names: `resnet18`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from distill.models.kinds.kind import Constructor, Kind
from distill.tasks import DENSE
from synthesis_kernels.errors import EchosetError, reason_of

NORMALISING = ("googlenet", "inception_v3")
"""Whose published weights are for images that the network itself normalises once more."""


def takes(name: str) -> bool:
    """Whether torchvision lists such a network of this name."""
    return name in names()


def constructor(name: str) -> Constructor:
    """Torchvision's builder, without its weights, nor those of a backbone."""
    from distill.torchvision_shim import torchvision

    build = partial(torchvision.models.get_model, name, weights=None)
    return partial(build, weights_backbone=None) if _segments(name) else build


def names() -> list[str]:
    """All of torchvision's classifiers and segmentation networks."""
    from distill.torchvision_shim import torchvision

    modules = (torchvision.models, torchvision.models.segmentation)
    return [name for module in modules for name in torchvision.models.list_models(module=module)]


def _segments(name: str) -> bool:
    """Whether a network of torchvision's answers with maps."""
    from distill.torchvision_shim import torchvision

    return name in torchvision.models.list_models(module=torchvision.models.segmentation)


def weight_names(name: str) -> list[str]:
    """Torchvision's names of a network's weights, `DEFAULT` for its best."""
    from distill.torchvision_shim import torchvision

    records = torchvision.models.get_model_weights(name)
    # Weights without classes are features alone.
    known = [record.name for record in records if record.meta["categories"]]
    return ["DEFAULT", *known] if known else []


def _published(name: str, weights: str) -> Any:
    """Torchvision's record of a network's weights."""
    from distill.torchvision_shim import torchvision

    return torchvision.models.get_model_weights(name)[weights]


def contract(name: str, arguments: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """What torchvision says of the images and classes that its weights were trained on."""
    task = {"task": DENSE} if _segments(name) else {}
    if weights is None:
        return task
    record = _published(name, weights)
    views = record.transforms()
    (size,) = views.resize_size if task else views.crop_size
    classes = list(record.meta["categories"])
    known: dict[str, Any] = {
        "channels": 3,
        "size": size,
        "classes": len(classes),
        "mean": tuple(views.mean),
        "std": tuple(views.std),
        "notes": {"weights": f"torchvision's {record}", "class_names": classes},
        **task,
    }
    if name in NORMALISING:
        known["arguments"] = {"transform_input": True}
    elif name.startswith("vit_"):
        known["arguments"] = {"image_size": size}
    return known


def weights(name: str, arguments: Mapping[str, Any], weights: str | None) -> Mapping[str, Tensor]:
    """The weights that torchvision publishes under a name; fetched once, and kept in the cache of
    torch.hub. Its progress is shown.
    """
    if weights is None:
        raise EchosetError(
            f"'{name}' names a network that was never trained: give the file of its weights, too "
            "(for a teacher --teacher.weights FILE), or have torchvision's downloaded "
            "(--teacher.weights DEFAULT)"
        )
    from distill.torchvision_shim import torchvision  # noqa: F401

    record = _published(name, weights)
    try:
        return record.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # whatever the network between, the disk or the file raises
        from torch import hub

        reason = reason_of(error)
        raise EchosetError(
            f"the weights {weights} of '{name}' could not be fetched ({reason:.200}). Where there "
            f"is a network, download {record.url} and put it into {hub.get_dir()}/checkpoints, or "
            "give it by --teacher.weights FILE with mean, std, size and classes"
        ) from error


KIND = Kind(
    form="a torchvision name such as resnet18",
    takes=takes,
    constructor=constructor,
    names=names,
    contract=contract,
    weight_names=weight_names,
    weights=weights,
)
