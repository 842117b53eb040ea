"""A set that is to be made: what it follows from, and what every way of making it does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distill.models import Classifier
from distill.models.classifier import on_device
from distill.runtime import Machine, Runtime
from distill.sets.transfer_set import TransferSet
from distill.students import identify_student
from distill.tracking import Logger
from inversion.jobs import ShardJob, assemble, claim, key_of, side_by_side
from inversion.more_calls import go_on
from inversion.options import SynthesisOptions
from inversion.parts.own import Own
from inversion.recipes import Recipe
from inversion.shards import Shard
from synthesis_kernels.backend import describe_forms


@dataclass(frozen=True)
class Assignment:
    """A synthesis whose options are checked."""

    teacher: Classifier
    weight_hash: str
    """The teacher's."""
    options: SynthesisOptions
    recipe: type[Recipe]
    own: Own
    """What the user brought along."""
    jobs: list[ShardJob]
    out: Path
    runtime: Runtime
    log: Logger | None

    def resolve(self) -> Machine:
        """What this process computes with."""
        return self.runtime.resolve(self.options.calls * self.options.generator.inner_steps)

    @property
    def groups(self) -> list[list[ShardJob]]:
        """The jobs, those that are made abreast together."""
        return side_by_side(self.jobs, self.options.abreast)

    @property
    def key(self) -> str:
        """The hash of what is being made."""
        return key_of(self.identity(self.options))

    def identity(self, options: SynthesisOptions) -> dict[str, Any]:
        """What a folder's content follows from, were it made with these options: anything else
        makes another set.
        """
        config = asdict(options)
        config["adversary"]["student"] = identify_student(options.adversary.student)
        identity: dict[str, Any] = {
            "config": config,
            "seed": self.runtime.seed,
            "teacher_hash": self.weight_hash,
            "input": self.teacher.contract,
        }
        if self.own:
            identity["own"] = self.own.record
        return identity

    def take_up(self, machine: Machine) -> None:
        """Mark the folder; a finished set that is to have more calls goes on."""
        if go_on(self.out, self.jobs, self.options, self.identity, machine.key):
            self.runtime.say(f"{self.out} was finished; it goes on to {self.options.calls} calls")
        claim(self.out, self.identity(self.options))

    def begin(self, machine: Machine) -> partial[Shard]:
        """Make the teacher ready, and give what begins a job's shard."""
        teacher = on_device(self.teacher, machine.device).eval().requires_grad_(False)
        self.runtime.say(describe_forms(machine.device))
        return partial(Shard, self.recipe, teacher, self.options, machine, self.out, self.own)

    def finish(self) -> TransferSet | None:
        """Write the manifest once every shard is there."""
        seed = self.runtime.seed
        given = (self.teacher, self.weight_hash, self.options, seed, self.own.record)
        return assemble(self.out, self.jobs, *given)
