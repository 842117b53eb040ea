"""What a run computes with, once every `auto` is decided.

The command line imports this file, so torch is not imported to run it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from synthesis_kernels.choices import Step
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    import torch

    from distill.team import Team

TorchDevice: TypeAlias = "torch.device"
"""For annotations in `distill.runtime`: what that file imports for a type checker, the command line
imports as well.
"""


@dataclass(frozen=True)
class Machine:
    """A runtime after every auto has been decided."""

    device: torch.device
    precision: torch.dtype
    step: Step
    """`auto` is a graph where the network can be captured, else eager steps."""
    team: Team | None = None
    """The processes that share each batch; None where this one is alone."""

    @property
    def processes(self) -> Team:
        """The processes that share each batch, if only this one."""
        from distill.team import SOLO

        return self.team or SOLO

    @property
    def key(self) -> str:
        """What the bytes of a result depend on beside the options: part of a saved state's name."""
        step = "graph" if self.step == "auto" else self.step
        key = f"{self.device.type} {self.precision} {step} {self._kernels()}"
        return key if self.team is None else f"{key} {self.team.world} processes"

    def record(self) -> dict[str, str | int]:
        """The same for a manifest."""
        told: dict[str, str | int] = {
            "precision": str(self.precision).removeprefix("torch."),
            "kernels": self._kernels(),
            "step": self.step,
        }
        return told if self.team is None else told | {"processes": self.team.world}

    def of_team(self, team: Team) -> Machine:
        """The same for processes that share each batch. Their steps are eager: what they tell one
        another is no part of a graph.
        """
        if team.world == 1:
            return self
        if self.step == "graph":
            raise EchosetError(
                "several processes that share each batch take eager steps; leave step auto"
            )
        return replace(self, step="eager", team=team)

    def _kernels(self) -> str:
        from synthesis_kernels.backend import name_form

        return name_form(self.device)
