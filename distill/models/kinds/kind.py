"""What a kind of network is: where a name leads, and what may be done with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Constructor = Callable[..., nn.Module]


def no_names() -> list[str]:
    """For a kind whose names nobody can list."""
    return []


def no_contract(name: str, arguments: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """For a kind whose names say nothing of a network's images and classes."""
    return {}


def no_weight_names(name: str) -> list[str]:
    """For a kind without weights that have names of their own."""
    return []


@dataclass(frozen=True)
class Kind:
    """One kind of network. A new one is a file here that defines `KIND`, and a line in the table of
    `distill.models.kinds`.
    """

    form: str
    """How its names look, for the message that lists what is known."""
    takes: Callable[[str], bool]
    """Whether this kind answers for a name. It imports nothing heavy unless it comes last."""
    constructor: Callable[[str], Constructor]
    """What builds the network, with fresh weights; it is called with the arguments it names."""
    names: Callable[[], list[str]] = no_names
    """Names to suggest after a misspelt one."""
    runs_user_code: bool = False
    """Whether building it may run code that the name points at. A file may not ask for that."""
    comes_trained: bool = False
    """Whether its constructor may give a network that has learnt."""
    contract: Callable[[str, Mapping[str, Any], str | None], dict[str, Any]] = no_contract
    """What a name, the user's arguments and the name of its weights say of channels, size, classes,
    mean and std; each counts where the option was left at its default. `notes` are kept with the
    network; `arguments` are given to the constructor where the user gives no others.
    """
    weight_names: Callable[[str], list[str]] = no_weight_names
    """Names of a network's published weights, which stand in the place of a file."""
    weights: Callable[[str, Mapping[str, Any], str | None], Mapping[str, Tensor]] | None = None
    """The published weights of a name, for a teacher without a file of them: those of the name
    given last, or else the only ones; None: there are none.
    """
