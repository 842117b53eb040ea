"""Which folders of pictures are splits, and which are classes."""

from __future__ import annotations

import os
from pathlib import Path

from synthesis_kernels.errors import EchosetError

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
"""How a picture's name ends."""
SPLITS = ("train", "test", "val")


def find_split(root: Path, split: str, labelled: bool) -> Path:
    """Where the split's pictures are; folders named for other splits must not be taken for
    classes.
    """
    splits = [name for name in SPLITS if (root / name).is_dir()]
    if labelled and len(splits) == 1:
        others = [folder for folder in _list_folders(root) if folder.name not in splits]
        if any(find_pictures(folder) for folder in others):
            raise EchosetError(
                f"{root}: is '{splits[0]}' what to train or test with, or a class like the folders "
                f"beside it? Name {root / splits[0]} and it is taken alone, or give the class "
                "another name"
            )
    if (root / split).is_dir():
        return root / split
    if splits:
        raise EchosetError(
            f"{root} has no folder '{split}', but {', '.join(splits)}; name one of these to use "
            "it whole"
        )
    return root


def find_classes(folder: Path) -> list[Path]:
    """The folders of classes in the order of their labels: where there is a train split beside that
    has them all, that one's, so that a class without pictures in this split moves no other one
    up.
    """
    folders = _list_folders(folder)
    full = _names_with_pictures(folders)
    train_folders = _list_train_folders(folder)
    known = _names_with_pictures(train_folders)
    # No split beside, or one of another layout
    if not full & known:
        train_folders = []
        known = set()
    _check_same_classes(folder, full, known)
    if not full:
        return folders
    counted = full | known
    for each in (*folders, *train_folders):
        if each.name not in counted:
            raise EchosetError(
                f"{each} is a class without pictures, and nothing beside it says whether it "
                "counts; add some, or remove it if the network does not know that class"
            )
    return [folder / name for name in sorted(counted)]


def find_pictures(folder: Path) -> list[Path]:
    """Pictures in the folder itself, in the order of their names; hidden ones are none."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURES and not path.name.startswith(".")
    )


def list_all_below(folder: Path) -> list[Path]:
    """All folders below, without hidden ones and what lies in them."""
    folders = []
    for path in folder.rglob("*"):
        is_hidden = any(name.startswith(".") for name in path.relative_to(folder).parts)
        if path.is_dir() and not is_hidden:
            folders.append(path)
    return folders


def _list_folders(folder: Path) -> list[Path]:
    """Folders in it, in the order of their names, without hidden ones."""
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _names_with_pictures(folders: list[Path]) -> set[str]:
    return {folder.name for folder in folders if find_pictures(folder)}


def _train_beside(folder: Path) -> Path:
    # A path such as ".." has no parent of its own; links are not followed, so that a split that is
    # one has its train split beside the link.
    return Path(os.path.abspath(folder)).parent / "train"


def _list_train_folders(folder: Path) -> list[Path]:
    """The folders of the train split beside a test split."""
    train = _train_beside(folder)
    name = Path(os.path.abspath(folder)).name
    if name not in ("test", "val") or not train.is_dir():
        return []
    return _list_folders(train)


def _check_same_classes(folder: Path, full: set[str], known: set[str]) -> None:
    """Refuse splits that each lack a class of the other."""
    if not known or full <= known or known <= full:
        return
    raise EchosetError(
        f"{_train_beside(folder)} lacks the class '{min(full - known)}' of {folder}, which lacks "
        f"'{min(known - full)}'; give both splits both"
    )
