"""What of a network's answer are its logits: where they lie, and in which form.

Both are found out once, when a network is checked (`Classifier.settle`), and kept in its spec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.models.recognising import recognise, seem_bounded, takes_sigmoid
from distill.options import OutputForm
from distill.sizes import say_size
from distill.tasks.places import enlarge
from synthesis_kernels.errors import EchosetError, reason_of

if TYPE_CHECKING:
    from distill.models.classifier import ModelSpec

USUAL_NAMES = ("logits", "out")
"""How networks that answer with several tensors call the one that decides."""
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of images that a network may be bound to."""
BOUND = "images at once, and not any number"
"""In the message about a network that is: no other size would help it."""
TINY = torch.finfo(torch.float32).tiny
ROUNDING = 1e-3
"""By which probabilities may lie outside of 0 and 1."""
EPSILON = torch.finfo(torch.float32).eps


def list_tensors(answer: object) -> dict[str, Tensor]:
    """Every tensor in an answer, by the name that `pick` takes; the answer itself has none."""
    if isinstance(answer, Tensor):
        return {"": answer}
    tensors = {}
    for name, part in _parts(answer):
        for rest, tensor in list_tensors(part).items():
            tensors[f"{name}.{rest}" if rest else name] = tensor
    return tensors


def _parts(answer: object) -> Iterator[tuple[str, object]]:
    """What an answer is made of, by key, attribute or place."""
    if isinstance(answer, Mapping):
        yield from ((str(key), part) for key, part in answer.items())
    elif isinstance(answer, tuple) and hasattr(answer, "_fields"):
        yield from zip(answer._fields, answer, strict=True)
    elif isinstance(answer, tuple | list):
        yield from ((str(place), part) for place, part in enumerate(answer))
    elif is_dataclass(answer):
        yield from ((each.name, getattr(answer, each.name)) for each in fields(answer))


def pick(answer: Any, name: str) -> Tensor:
    """The part of an answer under a key, an attribute or a place; dots lead further in."""
    if isinstance(answer, Mapping) and name in answer:
        return answer[name]
    first, _, rest = name.partition(".")
    part = _pick_part(answer, first)
    return pick(part, rest) if rest else part


def _pick_part(answer: Any, name: str) -> Any:
    if isinstance(answer, Mapping):
        # A key may be a number.
        return next(part for key, part in answer.items() if str(key) == name)
    if isinstance(answer, Sequence) and name.isdigit():
        return answer[int(name)]
    return getattr(answer, name)


def find_logits(
    answer: object, expected: tuple[int, ...], model: str, told: str | None
) -> str | None:
    """The name of the logits in an answer to two images: the one that was `told`, or the obvious
    one. None where the answer is a tensor itself.
    """
    tensors = list_tensors(answer)
    if not tensors:
        kind = type(answer).__name__
        raise EchosetError(f"{model} answers {kind} to two images, expected {expected}")
    if told is not None:
        if told not in tensors:
            there = "a tensor alone: leave output away" if "" in tensors else list_shapes(tensors)
            raise EchosetError(f"{model} answers no '{told}', but {there}")
        return told
    if "" in tensors:
        return None
    exact = [name for name, tensor in tensors.items() if tuple(tensor.shape) == expected]
    fitting = exact or [name for name, tensor in tensors.items() if _fits(tensor, expected)]
    usual = [name for name in USUAL_NAMES if name in fitting]
    if usual:
        return usual[0]
    if len(fitting) == 1:
        return fitting[0]
    many = f"{len(fitting)} of them have" if fitting else "none of them has"
    remedy = "say which are the logits (for a teacher --teacher.output NAME)"
    if not fitting:
        remedy = "set channels, size and classes to what it was trained on"
    doubt = say_task([*tensors.values()], expected)
    raise EchosetError(
        f"{model} answers {list_shapes(tensors)} to two images, and {many} the shape {expected}; "
        f"{doubt or remedy}"
    )


def say_task(answers: Sequence[Tensor], expected: tuple[int, ...]) -> str:
    """What to do where a network answers with maps and rows are expected, or the other way round;
    empty where neither is so.
    """
    has_maps = any(answer.ndim == 4 for answer in answers)
    if len(expected) == 2 and any(answer.shape[2:] == (1, 1) for answer in answers):
        return "an image has a single row: let its forward end with .flatten(1)"
    if len(expected) == 2 and has_maps:
        return (
            "maps are the answer to segmentation: say that this is its task (for a teacher "
            "--teacher.task segmentation)"
        )
    if len(expected) == 4 and not has_maps:
        return (
            "segmentation needs a network that answers with maps, such as unet-16 (for a student "
            "--student unet-8, for the adversarial one --synthesis.adversary.student.model unet-8)"
        )
    return ""


def list_shapes(tensors: Mapping[str, Tensor]) -> str:
    """Names and shapes, for a message."""
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())


def _fits(tensor: Tensor, expected: tuple[int, ...]) -> bool:
    shape = expected[1:]
    same = tuple(tensor.shape) == expected
    return same or _is_single(tensor, shape) or is_map(tensor, shape)


def is_map(answer: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether an answer is a map of logits where one is wanted, of whatever height and width."""
    if len(shape) != 3 or answer.ndim != 4:
        return False
    return answer.shape[1] == shape[0] or _is_single(answer, shape)


def _is_single(answer: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether an answer is one number an image, or a place of a map, where two classes, `shape` =
    (2, *places), are decided.
    """
    if shape[0] != 2 or not answer.is_floating_point():
        return False
    if len(shape) == 3:
        return answer.ndim == 4 and answer.shape[1] == 1
    return answer.ndim == 1 or answer.shape[1:] == (1,)


def to_logits(answer: Tensor, form: OutputForm | None, shape: tuple[int, ...]) -> Tensor:
    """An answer of this form as logits, (B, *shape). Maps of another size are resized.

    The one logit z of a network that tells two classes apart becomes −z/2 and z/2, so that neither
    class is the one that others are measured from.
    """
    single = isinstance(answer, Tensor) and _is_single(answer, shape)  # a traced one is not
    if form in (None, "logits"):
        logits = answer
    elif form == "sigmoid" or single:
        logits = _logit(answer.float())
    else:
        # Below the smallest float a softmax has rounded to 0; above it the gradient is right.
        logits = answer.float().clamp_min(TINY).log()
    if single:
        half = logits.reshape(len(answer), 1, *answer.shape[2:]) / 2
        logits = torch.cat([-half, half], 1)
    if isinstance(answer, Tensor) and is_map(answer, shape) and answer.shape[2:] != shape[1:]:
        return enlarge(logits, shape[1:])
    return logits


def _logit(chance: Tensor) -> Tensor:
    """The inverse of a sigmoid, finite where that was rounded to 0 or 1."""
    return chance.clamp_min(TINY).log() - torch.log1p(-chance.clamp_max(1 - EPSILON))


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
    single = _is_single(first, shape)
    resized = ""
    if is_map(first, shape) and first.shape[2:] != shape[1:]:
        sizes = [say_size(tuple(each)) for each in (first.shape[2:], shape[1:])]
        resized = f"maps of {sizes[0]}, resized to {sizes[1]} (bilinear)"
    if spec.output_form is not None:
        _check_told(first, spec)
    if spec.output_form is not None or not _fits(first, (2, *shape)):
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
