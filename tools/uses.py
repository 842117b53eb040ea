"""What the scripts about uses of sets share: images of four kinds, as many of each, and the file of
figures that a table on the pages is made of.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from results import Figures, read_runs, this_command
from torch import Tensor
from verbs import new_parser

from distill import Classifier, Images, TransferSet, draw_balanced, load_images
from distill.files import write_json
from inversion import open_source
from synthesis_kernels.backend import describe_device, repository_commit
from synthesis_kernels.errors import EchosetError

KINDS = ("real", "ours", "shaders", "noise")
"""Real images, those of a set, procedural pictures and uniform noise, both as they are drawn."""


def use_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all uses have."""
    parser = new_parser(text)
    parser.add_argument("--data", required=True, help="labelled images with train and test parts")
    parser.add_argument("--images", type=int, required=False, help="of each kind")
    parser.add_argument("--test", type=int, default=0, help="test images that judge; 0 = all")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--out", type=Path, required=True, help="the file of figures; it is added to"
    )
    return parser


def draw(
    kind: str, count: int, seed: int, teacher: Classifier, made: TransferSet, train: Images
) -> Tensor:  # (count, C, H, W) uint8
    """`count` images of a kind, other ones for another seed; of a set and of real images as many of
    each class.
    """
    if kind == "ours":
        images, _ = next(iter(made.calibration_loader(count, count, seed)))
        return (images * 255).round().to(torch.uint8)
    if kind == "real":
        return draw_balanced(train, teacher.spec.classes, count, seed).images
    return draw_pictures(kind, count, seed, teacher)


def draw_pictures(
    source: str, count: int, seed: int, teacher: Classifier
) -> Tensor:  # (count, C, H, W) uint8
    """The first images of a source that is drawn."""
    opened = open_source(source, teacher.spec.channels, teacher.spec.size, seed)
    blocks: list[Tensor] = []
    while sum(map(len, blocks)) < count:
        blocks.append(opened.block(len(blocks)))
    return torch.cat(blocks)[:count]


def load_split(path: str, split: str, teacher: Classifier) -> Images:
    """Labelled images as the network takes them."""
    data = load_images(path, split, teacher.spec.channels, teacher.spec.size)
    if data.labels is None:
        raise EchosetError(f"{path} has no labels to judge by")
    return data


def spread_over(data: Images, count: int) -> Images:
    """So many of the images, evenly spread; 0 = all."""
    if not count:
        return data
    return data.chosen(torch.linspace(0, len(data) - 1, count).long())


def accuracy(answer: Callable[[Tensor], Tensor], test: Images, batch: int = 100) -> float:
    """Share of the images that are decided right by what answers to images in [0, 1]."""
    right = 0
    labels = test.labels
    assert labels is not None
    with torch.no_grad():
        for start in range(0, len(test), batch):
            logits = answer(test.images[start : start + batch].float() / 255)
            right += int((logits.argmax(1) == labels[start : start + batch]).sum())
    return right / len(test)


class Record:
    """A file of figures, a row a measurement; what is in it is not measured again."""

    def __init__(self, path: Path, places: dict[str | None, str]) -> None:
        self.path = path
        self.head: Figures = {
            "command": this_command(places),
            "commit": repository_commit(),
            "device": describe_device(torch.device("cpu")),
            "torch": torch.__version__,
        }

    def measure(self, who: Figures, work: Callable[[], float]) -> None:
        """Add a row with the accuracy that `work` gives, if there is none for `who`."""
        rows: list[Figures] = read_runs(self.path).get("uses", [])
        if any(who.items() <= row.items() for row in rows):
            return
        begun = time.monotonic()
        found = work()
        seconds = round(time.monotonic() - begun, 1)
        rows.append({**who, "accuracy": found, "seconds": seconds})
        write_json(self.path, {**self.head, "uses": rows})
        told = ", ".join(str(value) for value in who.values())
        print(f"{told}: {found:.2%}, {seconds:.0f} s", file=sys.stderr, flush=True)
