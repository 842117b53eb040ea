"""The kinds of network, in the order in which they are asked for a name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from distill.models.archives import refuse_whole_network
from distill.models.kinds.kind import Kind
from distill.presence import looks_like_file, require_there
from synthesis_kernels.errors import EchosetError

__all__ = ["Kind", "all_kinds", "comes_trained", "find_kind", "kind_of"]

TABLE = ("zoo", "timm", "hf", "exported", "torchscript", "import_path", "torchvision")
"""Files of this package; each is imported only when all before it have declined."""


def all_kinds() -> Iterator[Kind]:
    """The kinds in order, each imported as it is reached."""
    for module in TABLE:
        yield import_module(f"{__name__}.{module}").KIND


def find_kind(name: str) -> Kind | None:
    """The kind that answers for `name`, or None."""
    for kind in all_kinds():
        if kind.takes(name):
            return kind
    return None


def kind_of(name: str, others: Iterable[str] = ()) -> Kind:
    """The kind that answers for `name`; where none does, the message suggests names, and `others`
    that the caller knows.
    """
    kind = find_kind(name)
    if kind is not None:
        return kind
    _refuse_place(name)
    if looks_like_file(name) or Path(name).is_file():
        require_there(name, "model file")
        refuse_whole_network(Path(name))
        raise EchosetError(
            f"'{name}' is a file, not a network: give the network's name as the model and this "
            "file as its weights"
        )
    kinds = list(all_kinds())
    names = [*others]
    for each in kinds:
        names += each.names()
    known = "; ".join(kind.form for kind in kinds)
    # What is known is a long list, and of no use to somebody who hit a wrong key.
    told = suggest_several(name, names) or f" Known: {known}; or a file saved by echoset"
    raise EchosetError(f"no model named '{name}'.{told}")


def _refuse_place(name: str) -> None:
    """Refuse a folder, or a file of Python, with what to say in its place."""
    path, _, attribute = name.partition(":")
    if path.endswith(".py"):
        file = Path(path)
        place = "" if str(file.parent) == "." else f", and put {file.parent} on PYTHONPATH"
        raise EchosetError(
            f"'{path}' is a file of Python: say {file.stem}:{attribute or 'NAME'}, with the name "
            f"of its class or function{place}"
        )
    if Path(name).is_dir():
        raise EchosetError(
            f"'{name}' is a folder: give the network's file in it, or hf:{name} where "
            "save_pretrained wrote it"
        )


def suggest_several(name: str, names: list[str]) -> str:
    """A sentence, after a space, with the names most like `name`; empty where none is."""
    close = get_close_matches(name, names, n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def comes_trained(name: str) -> bool:
    """Whether a network of this name may have learnt before it is given any weights."""
    kind = find_kind(name)
    return kind is not None and kind.comes_trained
