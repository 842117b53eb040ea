"""Several processes that share each batch: every one computes its part, and all hear what the
others have found.

A loss of the team is the sum of what its processes call their losses. So the gradient of what was
summed over them, or gathered from them, is the sum of their gradients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as processes
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from synthesis_kernels.errors import EchosetError, reason_of

if TYPE_CHECKING:
    from distill.runtime import Runtime

Told = TypeVar("Told")
PATIENCE = 600.0
"""Seconds that a process waits for the others. The first one saves, and reads files, alone."""
OWN_PATIENCE = "ECHOSET_TEAM_SECONDS"
"""The variable that sets another number of seconds."""


@dataclass(frozen=True)
class Team:
    """A process's place among those that share each batch; alone, everything is as it was."""

    rank: int = 0
    world: int = 1

    def __deepcopy__(self, memo: object) -> Team:
        return self

    @property
    def is_first(self) -> bool:
        """Whether this process writes files, and speaks for all."""
        return self.rank == 0

    def check(self, count: int, option: str) -> None:
        """Refuse a batch that has no equal parts; `option` is what sets it."""
        if count % self.world:
            lower = count // self.world * self.world
            higher = lower + self.world
            nearest = lower if lower and count - lower <= higher - count else higher
            raise EchosetError(
                f"{option} {count} has no {self.world} equal parts, one for each process; set it "
                f"to {nearest}"
            )

    def part(self, batch: Tensor) -> Tensor:  # (B, *) -> (B / world, *)
        """This process's."""
        if self.world == 1:
            return batch
        size = len(batch) // self.world
        return batch[self.rank * size : (self.rank + 1) * size]

    def placed(self, part: Tensor) -> Tensor:  # (B / world, *) -> (B, *)
        """The part where it is in the batch, with zeros in the others' places."""
        if self.world == 1:
            return part
        before = part.new_zeros(self.rank * len(part), *part.shape[1:])
        behind = part.new_zeros((self.world - 1 - self.rank) * len(part), *part.shape[1:])
        return torch.cat([before, part, behind])

    def compared(self, batch: Tensor) -> Tensor:  # (B, *)
        """Of a gathered batch the rows that are compared with one another: all of them."""
        return batch

    def gather(self, part: Tensor) -> Tensor:  # (B / world, *) -> (B, *)
        """All parts, one after the other; differentiable."""
        return part if self.world == 1 else _Gather.apply(part, self)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes; differentiable."""
        return value if self.world == 1 else _Sum.apply(value, self)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes; differentiable."""
        return value if self.world == 1 else self.sum(value) / self.world

    @torch.no_grad()
    def add_up(self, tensors: Sequence[Tensor], scale: float = 1.0) -> None:
        """Replace each by its sum over all processes, times `scale`."""
        if self.world == 1 or not tensors:
            return
        for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype is kind]
            total = self.summed(torch.cat([tensor.reshape(-1) for tensor in alike]))
            if scale != 1:
                total *= scale
            pieces = total.split([tensor.numel() for tensor in alike])
            torch._foreach_copy_(
                alike, [piece.view(one.shape) for piece, one in zip(pieces, alike, strict=True)]
            )

    def summed(self, value: Tensor) -> Tensor:
        """The sum over all processes, written over the value, which is contiguous."""
        with self._listening():
            processes.all_reduce(value)
        return value

    def gathered(self, part: Tensor) -> Tensor:  # (B / world, *) -> (B, *)
        """All parts, without a gradient."""
        part = part.contiguous()
        whole = part.new_empty(self.world * len(part), *part.shape[1:])
        with self._listening():
            processes.all_gather(list(whole.chunk(self.world)), part)
        return whole

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether any process has raised it."""
        if self.world == 1:
            return list(flags)
        raised = self.summed(torch.tensor(flags, dtype=torch.int64))
        return [bool(flag) for flag in raised.tolist()]

    def told(self, find: Callable[[], Told]) -> Told:
        """What the first process finds, which alone looks for it. Its errors are everybody's."""
        if self.world == 1:
            return find()
        box: list[Any] = [None, None]
        if self.is_first:
            try:
                box[0] = find()
            except EchosetError as error:
                box[1] = str(error)
        with self._listening():
            processes.broadcast_object_list(box, 0)
        found, problem = box
        if problem is not None:
            raise EchosetError(problem)
        return found

    def require_alike(self, find: Callable[[], Sequence[float]], place: str) -> None:
        """Refuse to go on where processes have come to different numbers: each keeps the whole
        state, and they have to be equal.
        """
        if self.world == 1:
            return
        rows = self.gathered(torch.tensor([find()], dtype=torch.float64))
        # A number that is none is told of elsewhere, and equals nothing.
        if not torch.equal(rows.nan_to_num(), rows[:1].expand_as(rows).nan_to_num()):
            raise EchosetError(
                f"the {self.world} processes no longer agree at {place}; run them on processors of "
                "one kind, with one number of threads (OMP_NUM_THREADS) and one version"
            )

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Say in plain words that another process can't be heard."""
        try:
            yield
        except RuntimeError as error:
            raise EchosetError(
                f"process {self.rank} of {self.world} no longer hears the others "
                f"({_reason(error)}): one of them has ended, and says why, or took longer than "
                f"{_patience():g} s ({OWN_PATIENCE}). The same command goes on from what was saved"
            ) from error


SOLO = Team()


class Turn(Team):
    """One of a batch's parts where a process alone computes them one after another: it is a team's
    part that hears of no other.
    """

    def compared(self, batch: Tensor) -> Tensor:  # (B, *) -> (B / world, *)
        return self.part(batch)

    def gather(self, part: Tensor) -> Tensor:  # (B / world, *)
        return part

    def sum(self, value: Tensor) -> Tensor:
        return value

    def mean(self, value: Tensor) -> Tensor:
        return value


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, team: Team) -> Tensor:
        ctx.team = team
        return team.summed(value.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.team.summed(grad.clone(memory_format=torch.contiguous_format)), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, team: Team) -> Tensor:
        ctx.team = team
        return team.gathered(part.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = ctx.team.summed(grad.clone(memory_format=torch.contiguous_format))
        return ctx.team.part(total), None


@contextmanager
def team_of(runtime: Runtime) -> Iterator[Team]:
    """All processes of the runtime as a team, which torchrun has started; one process is alone.
    A process group that is there already is used, and stays.
    """
    if runtime.world == 1:
        yield SOLO
        return
    device = runtime.resolve_device()
    starts = not processes.is_initialized()
    if starts:
        _start(runtime, device)
    team = Team(processes.get_rank(), processes.get_world_size())
    try:
        _check(team, runtime)
        yield team
    finally:
        if starts:
            processes.destroy_process_group()


def _start(runtime: Runtime, device: torch.device) -> None:
    """Find the other processes by what torchrun has put into the environment."""
    if "MASTER_ADDR" not in os.environ:
        raise EchosetError(
            f"process {runtime.rank} of {runtime.world} doesn't know how to reach the others; "
            f"start all of them by torchrun --nproc-per-node {runtime.world} -m echoset …"
        )
    timeout = timedelta(seconds=_patience())
    place = (runtime.rank, runtime.world)
    # torchrun may keep its store, and what processes that it has ended said there.
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store, _, _ = next(rendezvous("env://", *place, timeout=timeout))
        processes.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(f"echoset/{life}", store),
            rank=runtime.rank,
            world_size=runtime.world,
            timeout=timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise EchosetError(
            f"process {runtime.rank} of {runtime.world} can't reach the others: {_reason(error)}"
        ) from error


def _check(team: Team, runtime: Runtime) -> None:
    if (team.rank, team.world) != (runtime.rank, runtime.world):
        raise EchosetError(
            f"this is process {team.rank} of {team.world}, and the runtime says {runtime.rank} of "
            f"{runtime.world}; leave rank and world to torchrun"
        )


def _reason(error: Exception) -> str:
    """What went wrong, without the place in gloo's source, and its advice."""
    reason = reason_of(error).partition(". ")[0]
    return reason.partition("] ")[2] if reason.startswith("[") else reason


def _patience() -> float:
    """Seconds to wait for others."""
    given = os.environ.get(OWN_PATIENCE, "")
    try:
        seconds = float(given or PATIENCE)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise EchosetError(f"{OWN_PATIENCE} is '{given}', and must be a number of seconds above 0")
    return seconds
