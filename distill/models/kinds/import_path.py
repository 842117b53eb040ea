"""The user's own class or function: `package.module.Name` or `package.module:Name`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.models.kinds.kind import Constructor, Kind
from distill.presence import looks_like_file
from synthesis_kernels.errors import EchosetError


def takes(name: str) -> bool:
    """Whether the name has a module and something in it. A file has nothing in it yet."""
    separated = "." in name or ":" in name
    is_file = looks_like_file(name) or name.endswith(".py") or Path(name).is_file()
    return separated and not is_file


def constructor(name: str) -> Constructor:
    """Import what the name points at. This runs the user's own code."""
    _refuse_file(name)
    # The user's module may import torchvision, or what imports it: it may need mending first.
    import distill.torchvision_shim  # noqa: F401

    module_name, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        with _current_folder_first():
            module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise EchosetError(
            f"model '{name}': cannot import {module_name} ({error}); is it installed, in this "
            "folder or on PYTHONPATH?"
        ) from error
    network = getattr(module, attribute, None)
    if not callable(network):
        raise EchosetError(
            f"model '{name}': {module_name} has no class or function named {attribute}"
            f"{_hidden(module_name, module.__file__)}"
        )
    return network


def _refuse_file(name: str) -> None:
    """Refuse a module that is called as its file, before anything is imported."""
    module, _, attribute = name.replace(":", ".").rpartition(".")
    stem, _, ending = module.rpartition(".")
    if ending == "py":
        raise EchosetError(
            f"model '{name}': {module} is a file, and its module is {stem}: say {stem}:{attribute}"
        )


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """Find modules as `python script.py` would in the current folder. Afterwards it stays, as the
    last place to look, for what the user's functions import when they are called.
    """
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _hidden(module_name: str, file: str | None) -> str:
    """Whether a file in the current folder was meant, which a module of its name hides."""
    own = Path.cwd() / f"{module_name}.py"
    if not own.is_file() or own.samefile(file or "/"):
        return ""
    return f"; ./{own.name} is hidden by {file}: give the file another name"


KIND = Kind(
    form="an import path such as my_package.my_module.MyNet",
    takes=takes,
    constructor=constructor,
    runs_user_code=True,
    comes_trained=True,
)
