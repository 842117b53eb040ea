"""The losses of a training: by their names, or a user's own, with their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from distill.methods import LABELS, METHODS, NONE, Method, find_method, find_methods
from distill.options import DistillOptions, check_loss
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from torch import Tensor

    from distill.batch import Batch

OwnLoss: TypeAlias = "Method | Callable[[Batch], Tensor]"
"""A user's own: a function of a batch, or a `Method` where it needs more than answers."""
Weights: TypeAlias = "Mapping[str, float | None]"
Losses: TypeAlias = (
    "Weights | Mapping[OwnLoss, float | None] | Mapping[str | OwnLoss, float | None]"
)
"""What is added up, and by which weights; None is the published one."""


def split_losses(losses: Losses) -> tuple[dict[str, float | None], dict[str, Method]]:
    """Names and weights, and by name the methods among them that are a user's own."""
    if not isinstance(losses, Mapping):
        raise EchosetError(
            "losses are a mapping of names or functions to weights, such as {'hinton': 1.0}, not a "
            f"{type(losses).__name__}"
        )
    weights: dict[str, float | None] = {}
    own: dict[str, Method] = {}
    for loss, weight in losses.items():
        name = loss
        if not isinstance(name, str):
            method = own_method(name)
            name = method.name
            own[name] = method
        if name in weights:
            raise EchosetError(f"two losses are called {name}; give one another name")
        weights[name] = weight
    return weights, own


def own_method(loss: OwnLoss) -> Method:
    """A user's loss as a method. A function of a batch compares the teacher's answers, and brings
    no labels along.
    """
    if isinstance(loss, Method):
        method = loss
    elif callable(loss):
        name = getattr(loss, "__name__", type(loss).__name__)
        method = Method(name, 1.0, frozenset({"answers"}), loss, labels=0.0)
    else:
        raise EchosetError(
            f"a loss is a name, a function of a batch or a Method, not a {type(loss).__name__}"
        )
    if method.name in METHODS:
        raise EchosetError(f"there is a loss {method.name} already; call yours otherwise")
    return method


def full_loss(
    loss: Mapping[str, float | None], own: Mapping[str, Method] = NONE
) -> dict[str, float]:
    """The losses asked for, checked, with labels added where nothing else would teach the
    classes. A user's `own` are found by their names.
    """
    check_loss(loss, own)
    known = {name: own[name] if name in own else find_method(name) for name in loss}
    weights = {
        name: known[name].weight if weight is None else weight for name, weight in loss.items()
    }
    used = {name: weight for name, weight in weights.items() if weight}
    methods = [known[name] for name in used]
    crowds = [method.name for method in methods if method.crowd]
    if len(crowds) > 1:
        raise EchosetError(
            f"{' and '.join(crowds)} each replace the student's training by their own; choose one "
            "of them"
        )
    companions = [method.labels for method in methods if method.labels is not None]
    companion = max(companions, default=1.0)
    # A weight of 0 that was named stays 0.
    if companion and LABELS not in loss:
        return {LABELS: companion, **used}
    return used


def weigh_losses(
    options: DistillOptions, losses: Losses | None = None
) -> tuple[dict[str, float], list[Method]]:
    """What a lesson adds up: each method's weight, and the methods. `losses` stand in place of the
    options'.
    """
    named, own = split_losses(options.loss if losses is None else losses)
    weights = full_loss(named, own)
    return weights, find_methods(weights, own)


def asks_teacher(options: DistillOptions) -> bool:
    """Whether anything comes from the teacher: its decisions as labels, or what a loss compares
    with.
    """
    return need_teacher(options, find_methods(full_loss(options.loss)))


def need_teacher(options: DistillOptions, methods: Iterable[Method]) -> bool:
    """The same for these methods."""
    return options.labels == "teacher" or any(method.asks_teacher for method in methods)
