"""Torchvision's classifiers by their names: `resnet18`."""

from __future__ import annotations

from functools import partial

from distill.models.kinds.kind import Constructor, Kind


def takes(name: str) -> bool:
    """Whether torchvision lists a classifier of this name."""
    return name in names()


def constructor(name: str) -> Constructor:
    """Torchvision's builder, without its weights."""
    from distill.torchvision_shim import torchvision

    return partial(torchvision.models.get_model, name, weights=None)


def names() -> list[str]:
    """All of torchvision's classifiers."""
    from distill.torchvision_shim import torchvision

    return torchvision.models.list_models(module=torchvision.models)


KIND = Kind(
    form="a torchvision name such as resnet18",
    takes=takes,
    constructor=constructor,
    names=names,
)
