"""Shards in the making: what each consists of, how their states are kept, and what is written of
them in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.files import load_state, save_state, write_sealed
from distill.models import Classifier
from distill.restoring import restore as restore_state
from distill.runtime import Machine
from distill.sets.shards import write_shard
from distill.tasks.places import count_decisions
from distill.team import SOLO, Team
from inversion.jobs import ShardJob, adversary_file, finished, note_of
from inversion.options import SynthesisOptions
from inversion.parts.abreast import Turns
from inversion.parts.own import Own
from inversion.parts.progress import StepResult
from inversion.recipes import Recipe
from synthesis_kernels.backend import describe_device
from synthesis_kernels.errors import EchosetError

MOST_KEPT = 64 * 2**20
"""Bytes of tensors in a finished shard's last state, above which it is not kept."""
BUFFERS = ("buffer", "staged")
"""Parts of a recipe's state that hold images."""
REMEDY = "lower generator.learning_rate or objective.bn, and choose another --out"
"""Where a loss or a network is no longer finite."""


class Shard:
    """One shard in the making: its recipe, its random numbers, and where its state is kept."""

    def __init__(
        self,
        recipe_class: type[Recipe],
        teacher: Classifier,
        options: SynthesisOptions,
        machine: Machine,
        out: Path,
        own: Own,
        job: ShardJob,
    ) -> None:
        self.job = job
        self.options = options
        self.out = out
        self.machine = machine
        self.turns = Turns(job.seed, machine.device)
        with self.turns.turn():
            self.recipe = recipe_class(teacher, job, options, machine, own)

    def step(self) -> list[StepResult]:
        """One step of this shard alone."""
        with self.turns.turn():
            return [self.recipe.step()]

    def restore(self, file: Path, key: str, team: Team = SOLO) -> bool:
        """Go on from what was saved; tells whether anything was."""
        saved = team.told(lambda: load_state(file, key))
        if saved is None:
            return False
        with self.turns.turn():
            restore_state(self.recipe, saved, file)
        return True

    def save(self, file: Path, key: str) -> None:
        """Save everything that `restore` needs."""
        save_state(file, key, self._good_state())

    def finish(self, key: str) -> None:
        """Write the shard, and leave of its making what more calls could begin from."""
        state = self._good_state()
        self.recipe.leave(self.out)
        self._keep(key, state)
        _write(self.recipe, self.job, self.out, self.machine)
        _remove_state(self.out, self.job)

    def _good_state(self) -> dict[str, Any]:
        """The recipe's state; one that is broken is refused, and what was saved before stays."""
        with self.turns.turn():
            state = self.recipe.state_dict()
        broken = find_broken(state)
        if broken:
            raise EchosetError(
                f"{broken} is not finite after call {self.recipe.call} of {self.job.file}; {REMEDY}"
            )
        return state

    def _keep(self, key: str, state: dict[str, Any]) -> None:
        """Keep the last state, if it is small."""
        file = last_state_file(self.out, self.job)
        if size_of(state) <= MOST_KEPT:
            save_state(file, key, state)
        else:
            file.unlink(missing_ok=True)


def restore(shards: list[Shard], key: str) -> None:
    """Go on from what was saved last. Of a team the first process reads, and all put it back.

    Shards abreast are saved at one call, each beside its last state, before the first of these is
    replaced. So where a kill has left states of two calls, the later one's are all there.
    """
    team = shards[0].machine.processes
    for shard in shards:
        shard.restore(state_file(shard.out, shard.job), key, team)
    latest = max(shard.recipe.call for shard in shards)
    for shard in shards:
        new = _new_state_file(shard.out, shard.job)
        is_late = shard.recipe.call < latest
        if is_late and shard.restore(new, key, team) and team.is_first:
            new.replace(state_file(shard.out, shard.job))
    if team.is_first:
        for shard in shards:
            _new_state_file(shard.out, shard.job).unlink(missing_ok=True)


def save(shards: list[Shard], key: str) -> Path:
    """Save every shard's state, so that a kill leaves those of one call; gives where they are."""
    files = [state_file(shard.out, shard.job) for shard in shards]
    if len(shards) == 1:
        shards[0].save(files[0], key)
        return files[0]
    for shard in shards:
        shard.save(_new_state_file(shard.out, shard.job), key)
    for shard, file in zip(shards, files, strict=True):
        _new_state_file(shard.out, shard.job).replace(file)
    return shards[0].out


def is_finished(out: Path, job: ShardJob) -> bool:
    """Whether a shard is; then nothing else is left of its making."""
    if finished(out, job, check=True) is None:
        return False
    _remove_state(out, job)  # of a run killed at its very end
    return True


def find_broken(state: Any, name: str = "") -> str:
    """The name of a tensor, in nested mappings and sequences, that is not finite; empty where all
    are. Buffers are passed over: their empty slots hold anything.
    """
    if isinstance(state, Tensor):
        is_broken = state.is_floating_point() and not bool(state.isfinite().all())
        return name if is_broken else ""
    parts: list[tuple[Any, Any]] = []
    if isinstance(state, Mapping):
        parts = [(key, value) for key, value in state.items() if key not in BUFFERS]
    elif isinstance(state, list | tuple):
        parts = list(enumerate(state))
    named = (find_broken(value, f"{name}.{key}" if name else str(key)) for key, value in parts)
    return next((found for found in named if found), "")


def size_of(state: Any) -> int:
    """Bytes of the tensors in nested mappings and sequences."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(size_of(value) for value in state.values())
    if isinstance(state, list | tuple):
        return sum(size_of(value) for value in state)
    return 0


def _write(recipe: Recipe, job: ShardJob, out: Path, machine: Machine) -> None:
    """Write the shard, then the note that makes it count as finished."""
    tensors, told = recipe.shard()
    # The note of a shard that was lost does not count for this one.
    note_of(out, job).unlink(missing_ok=True)
    digest = write_shard(out / job.file, tensors)
    counts = count_decisions(tensors["labels"], len(job.quotas)).tolist()
    note = {
        "file": job.file,
        "sha256": digest,
        "count": len(tensors["labels"]),
        "seed": job.seed,
        "calls": recipe.call,
        "counts": counts,
        **told,
        "seconds": round(recipe.seconds, 3),
        "device": describe_device(machine.device),
        **machine.record(),
        "torch": torch.__version__,
    }
    write_sealed(note_of(out, job), note)


def state_file(out: Path, job: ShardJob) -> Path:
    """Where a shard in the making is kept."""
    return out / f".{job.file}.state"


def last_state_file(out: Path, job: ShardJob) -> Path:
    """Where the last state of a finished shard is kept, for `inversion.more_calls`."""
    return out / f".{job.file}.last"


def files_of(out: Path, job: ShardJob) -> list[Path]:
    """What a finished shard consists of; what makes it count as finished comes last."""
    beside = [adversary_file(out, job.index), last_state_file(out, job)]
    kept = [file for file in beside if file.is_file()]
    return [*kept, out / job.file, note_of(out, job)]


def _new_state_file(out: Path, job: ShardJob) -> Path:
    return out / f".{job.file}.new.state"


def _remove_state(out: Path, job: ShardJob) -> None:
    state_file(out, job).unlink(missing_ok=True)
    _new_state_file(out, job).unlink(missing_ok=True)
