"""What a user brings along from Python: an optimiser, and names for things that have none."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from distill.losses import Losses, own_method
from distill.runtime import Runtime
from synthesis_kernels.choices import Step
from synthesis_kernels.errors import EchosetError

MakeOptimiser: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes an optimiser of the parameters that are trained."""


def identify(thing: Any) -> str:
    """A name for a user's function, class or object: where it is, and a hash of its source where
    there is any. It is the same in every process, so that a stopped run knows it again.
    """
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return name
    return f"{name} {hashlib.sha256(source.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class OwnTraining:
    """What a user brings along to a training in place of what the options name."""

    losses: Losses | None = None
    optimiser: MakeOptimiser | None = None

    @property
    def identity(self) -> list[Any]:
        """What a result follows from, beside options; empty where nothing was brought along."""
        parts: list[Any] = []
        if self.losses is not None:
            parts += [[_name_loss(loss), weight] for loss, weight in self.losses.items()]
        if self.optimiser is not None:
            parts.append(identify(self.optimiser))
        return parts


def _name_loss(loss: Any) -> str:
    if isinstance(loss, str):
        return loss
    method = own_method(loss)
    return f"{method.name} {identify(method.loss)}"


class OwnOptimiser:
    """A user's optimiser, whose rates are what it was made with times the schedule's share."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.peaks = [float(group["lr"]) for group in inner.param_groups]
        self.zero_grad = inner.zero_grad
        self.step = inner.step
        self.state_dict = inner.state_dict
        self.load_state_dict = inner.load_state_dict

    def set_share(self, share: float) -> None:
        """Set the learning rates to `share` of what they were at first."""
        for group, peak in zip(self.inner.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share


def make_own(make: MakeOptimiser, network: nn.Module) -> OwnOptimiser:
    """The user's optimiser of the network's parameters."""
    optimiser = make(network.parameters())
    if not isinstance(optimiser, torch.optim.Optimizer):
        raise EchosetError(
            "optimiser must be a function that makes a torch.optim.Optimizer of parameters, and it "
            f"made a {type(optimiser).__name__}"
        )
    return OwnOptimiser(optimiser)


def eager_step(runtime: Runtime) -> Step:
    """How a step runs with a user's optimiser, whose rates a captured step would take for
    constants.
    """
    if runtime.step == "graph":
        raise EchosetError("an optimiser of your own takes eager steps; leave step auto")
    return "eager"
