"""What a run computes with, once every `auto` is decided.

The command line imports this file, so torch is not imported to run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from synthesis_kernels.choices import Step

if TYPE_CHECKING:
    import torch

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

    @property
    def key(self) -> str:
        """What the bytes of a result depend on beside the options: part of a saved state's name."""
        step = "graph" if self.step == "auto" else self.step
        return f"{self.device.type} {self.precision} {step} {self._kernels()}"

    def record(self) -> dict[str, str]:
        """The same for a manifest."""
        return {
            "precision": str(self.precision).removeprefix("torch."),
            "kernels": self._kernels(),
            "step": self.step,
        }

    def _kernels(self) -> str:
        from synthesis_kernels.backend import name_form

        return name_form(self.device)
