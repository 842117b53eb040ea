"""What a network answers with, found out by a few images (`Classifier.settle`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.models.outputs import find_logits, fits, is_map, is_single, pick
from distill.models.recognising import recognise, seem_bounded, takes_sigmoid
from distill.options import OutputForm
from distill.sizes import say_size
from synthesis_kernels.errors import EchosetError, reason_of

if TYPE_CHECKING:
    from distill.models.classifier import ModelSpec

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of images that a network may be bound to."""
BOUND = "images at once, and not any number"
"""In the message about a network that is: no other size would help it."""
ROUNDING = 1e-3
"""By which probabilities may lie outside of 0 and 1."""


def make_probes(shape: tuple[int, int, int]) -> list[Tensor]:  # of (2, C, H, W) in [0, 1]
    """Pairs of images that differ in kind: grey and black, noise, and smooth noise of two sizes."""
    random = torch.Generator().manual_seed(0)
    channels, *size = shape
    plain = torch.stack([torch.full(shape, 0.5), torch.zeros(shape)])
    probes = [plain, torch.rand((2, *shape), generator=random)]
    for cells in (3, 7):
        grid = torch.rand((2, channels, cells, cells), generator=random)
        probes.append(F.interpolate(grid, size, mode="bicubic").clamp(0, 1))
    return probes


def say_refusal(ask: Callable[[Tensor], Any], shape: tuple[int, ...], error: Exception) -> str:
    """Why a network refuses a few images of this shape in [0, 1]: it may take a fixed number."""
    reason = reason_of(error)
    for count in COUNTS:
        try:
            ask(torch.full((count, *shape), 0.5))
        except Exception:  # whatever the network raises
            continue
        return (
            f"takes {count} {BOUND} ({reason}): let its forward ask how many there are, as "
            "images.shape[0] does"
        )
    return f"does not take images of shape {shape} (channels, height, width): {reason}"


WORDS = {
    "logits": "logits",
    "probabilities": "probabilities, whose logarithms are taken as logits",
    "sigmoid": "a sigmoid's numbers, turned back into logits",
}


class Output(NamedTuple):
    """What of a network's answers are the logits."""

    output: str | None
    """Where they are: see `ModelSpec`."""
    form: OutputForm | None
    single: bool
    """Whether it is one number, for two classes."""
    recognised: bool
    """Whether the form, which is not the usual one, was told by nobody."""
    resized: str = ""
    """What is said of maps that are of another size than the images."""
    bounded: bool = False
    """Whether they look like probabilities, by their numbers alone."""

    def describe(self) -> str:
        """All of it in a line."""
        line = WORDS[self.form or "logits"]
        if self.output is not None:
            line += f", at '{self.output}' of the answer"
        if self.single:
            line += "; the one number z stands for −z/2 and z/2"
        if self.resized:
            line += f"; {self.resized}"
        return line

    def remarks(self) -> list[str]:
        """What a user should know before relying on it."""
        lines = []
        if self.recognised:
            lines.append(
                f"it seems to answer with {WORDS[self.form or 'logits']}; if so, say --teacher."
                f"output_form {self.form}, or output_form='{self.form}' in Python, and if not, "
                "logits"
            )
        if self.bounded:
            lines.append(
                "its answers to test pictures are bounded, as probabilities are, and are taken as "
                "logits. If they are none, leave out what bounds them, or say what they are, "
                "--teacher.output_form sigmoid or probabilities, or output_form='sigmoid' in "
                "Python; if they are, say logits"
            )
        if self.resized:
            lines.append(f"it answers with {self.resized}")
        return lines


def _check_told(answer: Tensor, spec: ModelSpec) -> None:
    """Refuse what was said to be probabilities, or a sigmoid's numbers, and does not lie between 0
    and 1.
    """
    low = answer.min().item()
    high = answer.max().item()
    if spec.output_form != "logits" and (low < -ROUNDING or high > 1 + ROUNDING):
        kind = "probabilities" if spec.output_form == "probabilities" else "numbers of a sigmoid"
        raise EchosetError(
            f"{spec.model} answers with numbers from {low:.2g} to {high:.2g}, which are no {kind}; "
            "leave output_form out, or say logits"
        )


def find_output(
    ask: Callable[[Tensor], Any], spec: ModelSpec, shape: tuple[int, ...]
) -> Output | None:
    """Where the logits lie in what `ask` gives to images in [0, 1], and what they are, where the
    spec doesn't say it. None where it takes no images.
    """
    probes = make_probes(spec.shape)
    try:
        answer = ask(probes[0])
    except Exception:  # whatever the network raises
        return None
    output = find_logits(answer, (2, *shape), spec.model, spec.output)
    first = answer if output is None else pick(answer, output)
    single = is_single(first, shape)
    resized = ""
    if is_map(first, shape) and first.shape[2:] != shape[1:]:
        sizes = [say_size(tuple(each)) for each in (first.shape[2:], shape[1:])]
        resized = f"maps of {sizes[0]}, resized to {sizes[1]} (bilinear)"
    if spec.output_form is not None:
        _check_told(first, spec)
    if spec.output_form is not None or not fits(first, (2, *shape)):
        return Output(output, spec.output_form, single, False, resized)
    try:
        answers = [answer, *(ask(images) for images in probes[1:])]
    except Exception:  # whatever the network raises
        return None
    parts = answers if output is None else [pick(each, output) for each in answers]
    rows = torch.cat([part.detach().double().cpu() for part in parts])  # (N, K, *places)
    form = recognise(rows)
    if form == "sigmoid" and not takes_sigmoid(lambda: ask(probes[0]), first.shape):
        form = None  # small logits
    bounded = form is None and seem_bounded(rows)
    return Output(output, form, single, form is not None, resized, bounded)
