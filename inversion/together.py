"""One generator over several processes: every one keeps a shard's whole state, and its part of each
batch is its share of the work. The first one reads and writes for all.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distill.models import as_found
from distill.runtime import Runtime
from distill.team import Team, team_of
from inversion.making import make_shards
from inversion.shards import is_finished
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from distill.sets.transfer_set import TransferSet
    from inversion.assignment import Assignment
    from inversion.jobs import ShardJob
    from inversion.options import SynthesisOptions
    from inversion.recipes import Recipe


def works_together(options: SynthesisOptions, runtime: Runtime) -> bool:
    """Whether several processes make each shard."""
    return options.parallel == "together" and runtime.world > 1


def check_together(options: SynthesisOptions, recipe_class: type[Recipe], runtime: Runtime) -> None:
    """Refuse a recipe whose steps can't be shared, and batches that have no equal parts."""
    if options.parallel != "together":
        return
    if not recipe_class.together:
        raise EchosetError(
            f"recipe {options.recipe} can't share a generator among processes; leave "
            "synthesis.parallel shards, by which each process makes shards of its own"
        )
    team = Team(runtime.rank, runtime.world)
    team.check(options.batch, "synthesis.batch")
    team.check(options.adversary.batch, "synthesis.adversary.batch")


def make_together(assignment: Assignment) -> TransferSet | None:
    """The set, made by all processes of the runtime; the first one gets it, the others None."""
    if assignment.runtime.rank:
        assignment = replace(assignment, runtime=assignment.runtime.quietly())
    out = assignment.out
    groups = assignment.groups
    with team_of(assignment.runtime) as team, as_found(assignment.teacher):
        machine = assignment.resolve().of_team(team)
        team.told(partial(assignment.take_up, machine))
        make = assignment.begin(machine)
        key = f"{assignment.key} {machine.key}"
        assignment.runtime.say(f"{team.world} processes make each shard together")
        left = len(groups)
        for number, group in enumerate(groups, 1):
            wanted = team.told(partial(_unfinished, out, group))
            shards = [make(job) for job in group if job.index in wanted]
            make_shards(shards, key, assignment.runtime, left, assignment.log)
            left = 0 if wanted else len(groups) - number
        return assignment.finish() if team.is_first else None


def _unfinished(out: Path, group: list[ShardJob]) -> list[int]:
    """Numbers of the shards that are still to be made."""
    return [job.index for job in group if not is_finished(out, job)]
