"""Shards run to their end, one or several abreast: shown, recorded, stopped and saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distill.loop import Interrupted, Loop
from distill.runtime import Runtime
from distill.tracking import Logger
from inversion.parts.progress import StepResult
from inversion.shards import REMEDY, Shard, restore, save


def make_shards(
    shards: list[Shard],
    key: str,
    runtime: Runtime,
    groups: int = 1,
    logger: Logger | None = None,
) -> None:
    """Run jobs to their end: one, or several abreast. None is left in the list. The estimate of
    time that is printed covers so many `groups` of them; with 0 none is.
    """
    if not shards:
        return
    restore(shards, key)
    first = shards[0].job
    out = shards[0].out
    team = shards[0].machine.processes
    count = len(shards)
    _give_notices(shards, runtime)
    loop = Loop(
        _title(shards),
        max(shard.recipe.planned for shard in shards),
        runtime.quiet,
        max(shard.recipe.call for shard in shards),
        save=lambda seconds: save(shards, key) if team.is_first else out,
        log=out / "log.jsonl" if team.is_first else None,
        work="synthesis",
        step="call" if groups else "",
        loops=groups,
        logger=logger,
        team=team,
    )
    with loop:
        # Shards abreast are saved when one of them is done.
        _finish(shards, key)
        while shards:
            _run(loop, shards)
            _finish(shards, key)
    if loop.stopping:
        made = f"{out / first.file} is" if count == 1 else f"{count} shards in {out} are"
        raise Interrupted(f"synthesis stopped; {made} finished")


def _give_notices(shards: list[Shard], runtime: Runtime) -> None:
    """What recipes have to say beforehand."""
    for shard in shards:
        notice = shard.recipe.notice()
        if notice:
            several = f"each of {len(shards)} shards: " if len(shards) > 1 else ""
            runtime.say(f"{several}{notice}")


def _run(loop: Loop, shards: list[Shard]) -> None:
    """Make calls until a shard is done."""
    step = _stepping(shards)
    done = [False]
    while not any(done):
        results = step()
        for shard, result in zip(shards, results, strict=True):
            _record(loop, shard, result)
        done = [shard.recipe.done for shard in shards]
        loop.advance(
            max(shard.recipe.call for shard in shards),
            _line(results),
            max(shard.recipe.planned for shard in shards),
            # The others are to go on from where they were beside it, whatever happens to it.
            keep=any(done) and len(shards) > 1,
            finished=all(done),
        )


def _finish(shards: list[Shard], key: str) -> None:
    """Write those that are done, and leave the others in the list."""
    for shard in list(shards):
        if shard.recipe.done:
            if shard.machine.processes.is_first:
                shard.finish(key)
            shards.remove(shard)


def _title(shards: list[Shard]) -> str:
    """What is being made, for the progress bar."""
    jobs = [shard.job for shard in shards]
    if len(jobs) > 1:
        return f"synthesising {len(jobs)} shards of {jobs[0].total}"
    return f"synthesising {jobs[0].file}" if jobs[0].total > 1 else "synthesising"


def _stepping(shards: list[Shard]) -> Callable[[], list[StepResult]]:
    """What makes a call of each."""
    first = shards[0]
    kind = first.recipe.abreast
    if len(shards) == 1 or kind is None:
        return first.step
    recipes: list[Any] = [shard.recipe for shard in shards]
    return kind(recipes, [shard.turns for shard in shards]).step


def _record(loop: Loop, shard: Shard, result: StepResult) -> None:
    call = shard.recipe.call
    of_several = f" of {shard.job.file}" if shard.job.total > 1 else ""
    loop.record(
        "call",
        result.figures,
        REMEDY,
        f"call {call}{of_several}",
        shard=shard.job.index,
        call=call,
        counts=result.counts,
        **result.notes,
    )
    options = shard.options
    # Groups of shards one after another: steps only rise, as loggers want them.
    before = shard.job.index // options.abreast * 2 * options.calls
    part = str(shard.job.index) if shard.job.total > 1 else ""
    loop.track({**result.figures, "kept": sum(result.counts)}, before + call, part)


def _line(results: list[StepResult]) -> str:
    """The first shard's figures, for all."""
    line = results[0].line
    return line if len(results) == 1 else f"first of {len(results)}: {line}"
