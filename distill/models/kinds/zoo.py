"""Networks of this project, by name: `wrn-40-2`. A new one is a file in `distill/models/zoo/` and a
line in the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from distill.models.kinds.kind import Constructor, Kind
from distill.models.zoo.convnet import ConvNet
from distill.models.zoo.groupnorm import GroupNormConvNet, GroupNormResNet
from distill.models.zoo.lenet import LeNet5
from distill.models.zoo.mobilenet import CifarMobileNetV2
from distill.models.zoo.resnet import CifarResNet
from distill.models.zoo.unet import UNet
from distill.models.zoo.vgg import CifarVGG11
from distill.models.zoo.vit import VisionTransformer
from distill.models.zoo.wrn import WideResNet
from distill.tasks import DENSE, USUAL
from distill.zoo_names import USUAL_NETWORKS


@dataclass(frozen=True)
class Family:
    """Networks of one form of name."""

    form: str
    """The name; `<width>` stands for a whole number, given to the constructor as `width`."""
    constructor: Constructor
    bound: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that belong to the name."""
    task: str = USUAL
    """What its networks decide."""

    def read(self, name: str) -> Constructor | None:
        """The constructor with what the name binds, or None for a name of another form."""
        pattern = re.sub(r"<(\w+)>", r"(?P<\1>\\d{1,9})", self.form)
        match = re.fullmatch(pattern, name)
        if match is None:
            return None
        numbers = {key: int(digits) for key, digits in match.groupdict().items()}
        bound = {**self.bound, **numbers}
        if not bound:
            return self.constructor
        return partial(self.constructor, **bound)


FAMILIES = (
    Family("lenet5", LeNet5),
    Family("convnet-<width>", ConvNet),
    Family("convnet-gn-<width>", GroupNormConvNet),
    Family("resnet-gn-<width>", GroupNormResNet),
    Family("vit-<width>x<depth>", VisionTransformer),
    Family("unet-<width>", UNet, task=DENSE),
    Family("wrn-<depth>-<widen>", WideResNet),
    Family("cifar-resnet18", CifarResNet, {"blocks": (2, 2, 2, 2)}),
    Family("cifar-resnet34", CifarResNet, {"blocks": (3, 4, 6, 3)}),
    Family("cifar-vgg11", CifarVGG11),
    Family("cifar-mobilenetv2", CifarMobileNetV2),
)


def _read(name: str) -> Constructor | None:
    for family in FAMILIES:
        constructor = family.read(name)
        if constructor is not None:
            return constructor
    return None


def takes(name: str) -> bool:
    """Whether a family of the zoo has a name of this form."""
    return _read(name) is not None


def constructor(name: str) -> Constructor:
    """The network's class, with what the name binds."""
    network = _read(name)
    assert network is not None  # only a name that `takes` accepted comes here
    return network


def contract(name: str, arguments: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """What the network decides, where that isn't the usual."""
    for family in FAMILIES:
        if family.read(name) is not None and family.task != USUAL:
            return {"task": family.task}
    return {}


def names() -> list[str]:
    """The names without numbers of one's own choice, and some with usual ones."""
    return [*USUAL_NETWORKS] + [family.form for family in FAMILIES if "<" not in family.form]


KIND = Kind(
    form=", ".join(family.form for family in FAMILIES),
    takes=takes,
    constructor=constructor,
    names=names,
    contract=contract,
)
