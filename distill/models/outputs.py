"""What of a network's answer are its logits: where they lie, and in which form.

Both are found out once, by `distill.models.settling`, and kept in a network's spec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.options import OutputForm
from distill.tasks.places import enlarge
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    pass

USUAL_NAMES = ("logits", "out")
"""How networks that answer with several tensors call the one that decides."""
TINY = torch.finfo(torch.float32).tiny
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
    fitting = exact or [name for name, tensor in tensors.items() if fits(tensor, expected)]
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
            "--teacher.task segmentation), or, where the teacher tells classes, take a student "
            "that tells them, too (--student convnet-16, and no preset for maps)"
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


def fits(tensor: Tensor, expected: tuple[int, ...]) -> bool:
    """Whether a tensor may be the logits of this shape, maps of whatever height and width."""
    shape = expected[1:]
    same = tuple(tensor.shape) == expected
    return same or is_single(tensor, shape) or is_map(tensor, shape)


def is_map(answer: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether an answer is a map of logits where one is wanted, of whatever height and width."""
    if len(shape) != 3 or answer.ndim != 4:
        return False
    return answer.shape[1] == shape[0] or is_single(answer, shape)


def is_single(answer: Tensor, shape: tuple[int, ...]) -> bool:
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
    single = isinstance(answer, Tensor) and is_single(answer, shape)  # a traced one is not
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
