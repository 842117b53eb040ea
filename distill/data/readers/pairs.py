"""Pictures and their label maps: folders `images` and `labels` with files of the same names, in the
folder itself or in its splits.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from distill.data.maps import Maps, fit_maps, read_map
from distill.data.pictures import open_picture
from distill.data.readers.class_folders import SPLITS, find_pictures, find_split
from distill.data.readers.folders import read_pictures
from distill.data.readers.reader import Content, Request, watch
from synthesis_kernels.errors import EchosetError

IMAGES = "images"
LABELS = "labels"
"""Names of the two folders."""


def describe(split: str) -> str:
    """What the layout is called."""
    return f"folders '{IMAGES}' and '{LABELS}' with files of the same names, in it or in '{split}'"


def is_at(path: Path, split: str) -> bool:
    """Whether there is a folder of images where this layout has it."""
    places = [path, *(path / name for name in (split, *SPLITS))]
    return any((place / IMAGES).is_dir() for place in places)


def has_maps(path: Path, split: str) -> bool:
    """Whether label maps lie beside the images: else the folder may be any that has this name."""
    places = [path, *(path / name for name in (split, *SPLITS))]
    return any((place / IMAGES).is_dir() and (place / LABELS).is_dir() for place in places)


def find_below(root: Path, split: str) -> list[Path]:
    """Such folders are named themselves."""
    return []


def read(path: Path, request: Request) -> Content:
    """Images, and a label map for each where labels are wanted."""
    folder = find_split(path, request.split, labelled=False)
    if not (folder / IMAGES).is_dir():
        raise EchosetError(f"{folder} has no folder '{IMAGES}'")
    pictures = find_pictures(folder / IMAGES)
    if not pictures:
        within = any((folder / IMAGES / name).is_dir() for name in (request.split, *SPLITS))
        remedy = f"; splits have folders of their own, {request.split}/{IMAGES}" if within else ""
        raise EchosetError(f"{folder / IMAGES} has no pictures in it{remedy}")
    labels = None
    if request.labelled and request.maps is not None:
        files = _pair(pictures, folder / LABELS)
        # First, as a map that can't be is known sooner than a picture is resized.
        labels = _read_maps(pictures, files, request, request.maps)
    return Content(read_pictures(pictures, request), labels)


def _pair(pictures: list[Path], folder: Path) -> list[Path]:
    """The label map of each picture, which has its name."""
    if not folder.is_dir():
        raise EchosetError(
            f"{folder.parent} has no folder '{LABELS}' with a label map for each of its pictures"
        )
    files = find_pictures(folder)
    maps = {file.stem: file for file in files if file.suffix.lower() == ".png"}
    seen: dict[str, Path] = {}
    for picture in pictures:
        if picture.stem in seen:
            raise EchosetError(f"{seen[picture.stem]} and {picture} would have one label map")
        if picture.stem not in maps:
            there = f"; {files[0].name} is the first file there" if files else ""
            raise EchosetError(f"{picture} has no label map {folder / picture.stem}.png{there}")
        seen[picture.stem] = picture
    for stem, file in maps.items():
        if stem not in seen:
            raise EchosetError(f"{file} is the label map of no picture in {folder.parent / IMAGES}")
    return [maps[picture.stem] for picture in pictures]


def _read_maps(
    pictures: list[Path], files: list[Path], request: Request, maps: Maps
) -> Tensor:  # (N, H, W) int64
    labels: list[Tensor] = []
    for picture, file in watch(list(zip(pictures, files, strict=True)), request.quiet):
        values = read_map(file, maps)
        _check_size(values, file, picture)
        if request.shape is not None:
            values = fit_maps(values[None], request.shape[1])[0]
        elif labels and values.shape != labels[0].shape:
            raise EchosetError(
                f"{file} is {_say(values)}, the maps before it {_say(labels[0])}; make them all "
                "one size, or give channels and size"
            )
        labels.append(values)
    return torch.stack(labels)


def _check_size(values: Tensor, file: Path, picture: Path) -> None:
    """Refuse a map of another size than its picture."""
    with open_picture(picture) as opened:
        width, height = opened.size
    if tuple(values.shape) != (height, width):
        raise EchosetError(f"{file} is {_say(values)}, and its picture {picture} {height}×{width}")


def _say(values: Tensor) -> str:
    return f"{values.shape[0]}×{values.shape[1]}"
