"""One generator over several processes: every one keeps a shard's whole state, and its part of each
batch is its share of the work. The first one reads and writes for all.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distill.models import Classifier, as_found
from distill.models.classifier import on_device
from distill.runtime import Runtime
from distill.team import Team, team_of
from inversion.shards import Shard, is_finished
from synthesis_kernels.backend import describe_forms
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from distill.sets.transfer_set import TransferSet
    from distill.tracking import Logger
    from inversion.jobs import ShardJob
    from inversion.more_calls import Identity
    from inversion.options import SynthesisOptions
    from inversion.parts.own import Own
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


def make_together(
    teacher: Classifier,
    options: SynthesisOptions,
    out: Path,
    runtime: Runtime,
    jobs: list[ShardJob],
    identity: Identity,
    recipe_class: type[Recipe],
    own: Own,
    weight_hash: str,
    log: Logger | None,
) -> TransferSet | None:
    """The set, made by all processes of the runtime; the first one gets it, the others None."""
    from inversion.jobs import assemble, claim, side_by_side
    from inversion.making import make_shards
    from inversion.more_calls import go_on

    if runtime.rank:
        runtime = runtime.quietly()
    steps = options.calls * options.generator.inner_steps
    with team_of(runtime) as team, as_found(teacher):
        machine = runtime.resolve(steps).of_team(team)
        if team.told(lambda: go_on(out, jobs, options, identity, machine.key)):
            runtime.say(f"{out} was finished; it goes on to {options.calls} calls")
        key = team.told(lambda: claim(out, identity(options)))
        teacher = on_device(teacher, machine.device).eval().requires_grad_(False)
        runtime.say(describe_forms(machine.device))
        runtime.say(f"{team.world} processes make each shard together")
        make = partial(Shard, recipe_class, teacher, options, machine, out, own)
        groups = side_by_side(jobs, options.abreast)
        left = len(groups)
        for number, group in enumerate(groups, 1):
            wanted = team.told(partial(_unfinished, out, group))
            shards = [make(job) for job in group if job.index in wanted]
            make_shards(shards, f"{key} {machine.key}", runtime, left, log)
            left = 0 if wanted else len(groups) - number
        if not team.is_first:
            return None
        return assemble(out, jobs, teacher, weight_hash, options, runtime.seed, own.record)


def _unfinished(out: Path, group: list[ShardJob]) -> list[int]:
    """Numbers of the shards that are still to be made."""
    return [job.index for job in group if not is_finished(out, job)]
