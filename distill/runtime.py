"""Where and how a run computes: one object that every long function takes.

The command line reads this file, so torch is imported only where it is used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TypeVar

from distill.brief import Brief
from distill.machine import Machine, TorchDevice
from synthesis_kernels.choices import Device, Form, Precision, Step
from synthesis_kernels.errors import EchosetError

__all__ = ["Device", "Form", "Machine", "Precision", "Runtime", "Step", "place_in_torchrun"]

Job = TypeVar("Job")


def place_in_torchrun() -> tuple[int, int]:
    """Rank and world from torchrun's environment; 0 of 1 where it did not start this process.

    torchrun sets both, and other launchers use these names otherwise: what is no place at all is
    passed over, as this is read when the package is imported.
    """
    rank = os.environ.get("RANK", "")
    world = os.environ.get("WORLD_SIZE", "")
    if rank.isdigit() and world.isdigit() and int(rank) < int(world):
        return int(rank), int(world)
    return 0, 1


@dataclass(frozen=True, repr=False)
class Runtime(Brief):
    """Device, precision, form of a step, seed, and this process's place among others."""

    seed: int = 0
    """Fixes the result: same seed, device, precision, kernels and number of threads, same bytes."""
    device: Device = "auto"
    """Where to compute. auto takes CUDA where there is one."""
    precision: Precision = "auto"
    """Precision of matrix products. auto takes bfloat16 where the processor has it."""
    kernels: Form = "auto"
    """Form of the kernels: native (C++ for CPUs, compiled on first use), triton (CUDA), or
    reference (plain torch)."""
    step: Step = "auto"
    """How a training step runs: eager, or graph (a captured CUDA graph). auto takes graph on CUDA
    where the network can be captured. On a CPU it records the first steps of students that come
    with echoset, and runs these operations again, to the same bits. Elsewhere it is eager."""
    quiet: bool = False
    """Show no progress and no tables."""
    rank: int = field(default_factory=lambda: place_in_torchrun()[0])
    """This process's number among those that share the work; torchrun sets it."""
    world: int = field(default_factory=lambda: place_in_torchrun()[1])
    """How many processes share the work; torchrun sets it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rank < self.world:
            raise EchosetError(f"rank must lie in [0, world), got rank {self.rank} of {self.world}")

    def resolve(self, steps: int = 0) -> Machine:
        """The device, precision and step that a loop of so many steps runs with."""
        from synthesis_kernels.backend import resolve_precision
        from synthesis_kernels.step import resolve_step

        device = self.resolve_device()
        precision = resolve_precision(device, self.precision)
        return Machine(device, precision, resolve_step(self.step, device, steps))

    def resolve_device(self) -> TorchDevice:
        """The device; under torchrun, each process of a machine has its own."""
        import torch

        from synthesis_kernels.backend import resolve_device

        device = resolve_device(self.device)
        local = os.environ.get("LOCAL_RANK", "")
        if device.type == "cuda" and self.world > 1 and local.isdigit():
            count = torch.cuda.device_count()
            if int(local) >= count:
                raise EchosetError(
                    f"LOCAL_RANK is {local}, and this process sees {count} CUDA devices; start as "
                    "many processes a machine as it has devices, or use --device cpu"
                )
            device = torch.device("cuda", int(local))
            torch.cuda.set_device(device)
        return device

    @property
    def claims(self) -> bool:
        """Whether processes claim jobs from one another, which takes torchrun's own store."""
        if self.world == 1 or (self.rank, self.world) != place_in_torchrun():
            return False
        address = os.environ.get("MASTER_ADDR", "")
        port = os.environ.get("MASTER_PORT", "")
        has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return has_store and bool(address) and port.isdigit()

    @property
    def leads(self) -> bool:
        """Whether this process finishes what all have made; without claims, any may."""
        return not self.claims or self.rank == 0

    def share(self, jobs: list[Job]) -> list[Job]:
        """The jobs of this process: every world-th from its rank on."""
        return jobs[self.rank :: self.world]

    def require_alone(self, work: str) -> None:
        """Refuse work that several processes can't share."""
        if self.world > 1:
            raise EchosetError(
                f"{work} runs in one process, and this is one of {self.world}; start it without "
                "torchrun, or with world 1"
            )

    def alone(self) -> Runtime:
        """The same for work that this process does by itself."""
        return replace(self, rank=0, world=1)

    def quietly(self) -> Runtime:
        """The same without progress or tables."""
        return replace(self, quiet=True)

    def say(self, message: str) -> None:
        """Tell the user something once, unless the run is quiet."""
        from synthesis_kernels.backend import say_once

        if not self.quiet:
            say_once(message)
