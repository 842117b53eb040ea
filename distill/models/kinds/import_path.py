"""The user's own class or function: `package.module.Name` or `package.module:Name`."""

from __future__ import annotations

import importlib

from distill.models.kinds.kind import Constructor, Kind, looks_like_file
from synthesis_kernels.errors import EchosetError


def takes(name: str) -> bool:
    """Whether the name has a module and something in it."""
    separated = "." in name or ":" in name
    return separated and not looks_like_file(name)


def constructor(name: str) -> Constructor:
    """Import what the name points at. This runs the user's own code."""
    module_name, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise EchosetError(
            f"model '{name}': cannot import {module_name} ({error}); is it installed or on "
            "PYTHONPATH?"
        ) from error
    network = getattr(module, attribute, None)
    if not callable(network):
        raise EchosetError(
            f"model '{name}': {module_name} has no class or function named {attribute}"
        )
    return network


KIND = Kind(
    form="an import path such as my_package.my_module.MyNet",
    takes=takes,
    constructor=constructor,
    runs_user_code=True,
    comes_trained=True,
)
