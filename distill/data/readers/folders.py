"""Pictures in folders: one folder per class, optionally below the split, or pictures side by side
without labels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from distill.data.pictures import BYTES, GREYING, open_picture
from distill.data.pixels import fit_pixels, to_pixels
from distill.data.readers.class_folders import (
    PICTURES,
    find_classes,
    find_pictures,
    find_split,
    list_all_below,
)
from distill.data.readers.reader import Content, Request, watch
from distill.sizes import Size
from synthesis_kernels.errors import EchosetError

LARGE = 4_000_000
"""Pixels of a picture that is fitted one channel after another, for its memory's sake."""


def describe(split: str) -> str:
    """What the layout is called."""
    return "folders of pictures"


def is_at(path: Path, split: str) -> bool:
    """Whether there is anything in the folder."""
    return path.is_dir() and any(path.iterdir())


def find_below(root: Path, split: str) -> list[Path]:
    """A folder is read as a whole."""
    return []


def read(path: Path, request: Request) -> Content:
    """One folder per class, or pictures side by side without labels; where no labels are wanted,
    all pictures at any depth.
    """
    folder = find_split(path, request.split, request.labelled)
    pictures, labels, names = _list_pictures(folder, request.labelled)
    if not pictures:
        raise EchosetError(
            f"{folder} has no pictures in it ({', '.join(sorted(PICTURES))}), nor folders of them"
        )
    images = read_pictures(pictures, request)
    if not labels:
        return Content(images, None)
    return Content(images, torch.tensor(labels), names)


def _list_pictures(folder: Path, labelled: bool) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """All pictures, and a label for each and the folders' names where they lie in folders of
    classes.
    """
    if not labelled:
        folders = [folder, *list_all_below(folder)]
        return sorted(path for each in folders for path in find_pictures(each)), [], ()
    pictures: list[Path] = []
    labels: list[int] = []
    places = find_classes(folder)
    for label, place in enumerate(places):
        members = find_pictures(place) if place.is_dir() else []
        pictures += members
        labels += [label] * len(members)
    loose = find_pictures(folder)
    if pictures and loose:
        raise EchosetError(f"{loose[0]} lies beside folders of classes; move it into one, or away")
    return pictures or loose, labels, tuple(place.name for place in places)


def read_pictures(paths: list[Path], request: Request) -> Tensor:  # (N, C, H, W) uint8
    """Pictures of one shape, or fitted to the one that is wanted."""
    images: list[Tensor] = []
    for path in watch(paths, request.quiet):
        pixels = _read_picture(path, request.shape[0] if request.shape else None)
        if request.shape is not None:
            pixels = _fit(pixels, *request.shape)
        elif images:
            _check_alike(pixels, images[0], path)
        images.append(pixels)
    return torch.stack(images).contiguous()


def _read_picture(path: Path, channels: int | None) -> Tensor:  # (C, H, W) uint8
    try:
        with open_picture(path, GREYING if channels == 1 else BYTES) as picture:
            return to_pixels(picture, str(path), channels)
    except EchosetError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds
        raise EchosetError(f"{path} is not a readable picture: {error}") from error


def _fit(pixels: Tensor, channels: int, size: Size) -> Tensor:  # (C, H, W) uint8
    if len(pixels) != channels or pixels[0].numel() < LARGE:
        return fit_pixels(pixels[None], channels, size)[0]
    return torch.cat([fit_pixels(channel[None, None], 1, size)[0] for channel in pixels])


def _check_alike(pixels: Tensor, first: Tensor, path: Path) -> None:
    """Refuse pictures of several shapes where no shape is asked for."""
    if pixels.shape == first.shape:
        return
    wanted = "grey or all colour" if pixels.shape[1:] == first.shape[1:] else "one size"
    raise EchosetError(
        f"{path} is {tuple(pixels.shape)}, the pictures before it {tuple(first.shape)}; make them "
        f"all {wanted}"
    )
