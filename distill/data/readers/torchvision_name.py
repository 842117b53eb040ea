"""`torchvision:NAME:ROOT`: any of torchvision's data sets that take a root and `train` or `split`,
already downloaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from distill.data.pictures import pictures_checked
from distill.data.pixels import stack_items, to_pixels
from distill.data.readers.reader import Content, Request, watch
from distill.sizes import settle_size
from synthesis_kernels.errors import EchosetError

PREFIX = "torchvision:"
UNPICKLING = ("LSUN", "LSUNClass")
"""Data sets that are read by way of a pickle that nothing vouches for."""


def read_named(address: str, request: Request) -> Content:
    """Images and labels of a named data set; nothing here reaches for the network."""
    kind, root = _resolve(address)
    try:
        with pictures_checked():
            return _read(kind, root, address, request)
    except EchosetError:
        raise
    except Exception as error:  # each data set has its own
        raise EchosetError(
            f"{address}: torchvision cannot read it ({type(error).__name__}: {error})"
        ) from error


def _read(kind: Callable[..., Any], root: str, address: str, request: Request) -> Content:
    dataset = kind(root, **_split_of(kind, request.split))
    shape = request.shape
    if shape is None:
        first = to_pixels(dataset[0][0], address)
        shape = (first.shape[0], settle_size(tuple(first.shape[1:])))
    items = watch(dataset, request.quiet)
    return Content(*stack_items(items, f"{address} ({request.split})", *shape))


def _resolve(address: str) -> tuple[Callable[..., Any], str]:
    """The class that is named, and its root."""
    from distill.torchvision_shim import torchvision

    name, _, root = address.removeprefix(PREFIX).partition(":")
    if name in UNPICKLING:
        raise EchosetError(
            f"'{address}': torchvision unpickles a file to read {name}, which could run code from "
            "it. Write its pictures into one folder per class, and name that folder"
        )
    kind = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(kind) or not root:
        raise EchosetError(
            f"'{address}' should be torchvision:NAME:ROOT with NAME a class of "
            "torchvision.datasets, such as SVHN"
        )
    return kind, root


def _split_of(kind: Callable[..., Any], split: str) -> dict[str, bool | str]:
    """The split as the class takes it."""
    parameters = inspect.signature(kind).parameters
    if "train" in parameters:
        return {"train": split == "train"}
    if "split" in parameters:
        return {"split": split}
    return {}
