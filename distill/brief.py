"""What all classes of options have: types that are checked, and a short way to print them."""

from __future__ import annotations

import dataclasses
from typing import Any

from distill.option_types import require_types


@dataclasses.dataclass(frozen=True, repr=False)
class Brief:
    """For dataclasses with `repr=False`: `SynthesisOptions(images=500)` prints as it is written.

    It is a dataclass itself, as jsonargparse takes no mixture for a group of options.
    """

    def __post_init__(self) -> None:
        require_types(self)

    def __repr__(self) -> str:
        told = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != default_of(field):
                told.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(told)})"


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default, made if it has to be made."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
