"""The driver: plan the shards, step the recipe until each is done, write it, then the manifest.

It knows no recipe by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from distill.gathering import gather
from distill.models import Classifier, as_classifier, as_found
from distill.models.wrapping import as_student, require_alike
from distill.ranges import require_options
from distill.runtime import Machine, Runtime
from distill.sets.transfer_set import TransferSet
from distill.sharing import Share, shared_out
from distill.tracking import Logger
from inversion.assignment import Assignment
from inversion.classes import say_imbalance
from inversion.inspection import inspect_teacher
from inversion.jobs import ShardJob, finished, plan
from inversion.making import make_shards
from inversion.options import SynthesisOptions
from inversion.parts.own import Own, Term, check_generator
from inversion.recipes import Recipe, find_recipe
from inversion.shards import files_of, is_finished, state_file
from inversion.together import check_together, make_together, works_together
from synthesis_kernels.errors import EchosetError


def synthesize(
    teacher: Classifier | nn.Module,
    options: SynthesisOptions = SynthesisOptions(),
    out: str | Path = "runs/set",
    runtime: Runtime = Runtime(),
    *,
    terms: Mapping[Term, float] | None = None,
    generator: nn.Module | None = None,
    adversary: Classifier | nn.Module | None = None,
    recipe: type[Recipe] | None = None,
    log: Logger | None = None,
) -> TransferSet:
    """Make a transfer set from `teacher` in the folder `out`.

    Run again after a stop, it goes on where it was; finished shards are kept. Several processes
    call `synthesize_share`, which takes the same.

    From Python, `terms` are added to the generator's loss: functions of its images, the teacher's
    logits and the wanted classes, and their weights. `generator` makes images of a latent, and
    `adversary` is the adversarial student, in place of those that the options name. `recipe` is a
    class in place of the recipe that they name. `log` gets the figures of the log: any object with
    `log(figures, step)`.
    """
    require_options(options, SynthesisOptions, "options")
    require_options(runtime, Runtime, "runtime")
    if runtime.world > 1:
        raise EchosetError(
            f"this is one process of {runtime.world}, and synthesize makes a whole set; call "
            "synthesize_share, which takes the same"
        )
    made = synthesize_share(
        teacher,
        options,
        out,
        runtime,
        terms=terms,
        generator=generator,
        adversary=adversary,
        recipe=recipe,
        log=log,
    )
    assert made is not None, "a process alone makes every shard"
    imbalance = say_imbalance(out, made)
    if imbalance:
        runtime.say(imbalance)
    return made


def synthesize_share(
    teacher: Classifier | nn.Module,
    options: SynthesisOptions = SynthesisOptions(),
    out: str | Path = "runs/set",
    runtime: Runtime = Runtime(),
    *,
    terms: Mapping[Term, float] | None = None,
    generator: nn.Module | None = None,
    adversary: Classifier | nn.Module | None = None,
    recipe: type[Recipe] | None = None,
    log: Logger | None = None,
) -> TransferSet | None:
    """What `synthesize` does, by several processes. Under torchrun they claim shards from one
    another, and process 0 writes the manifest in the end; elsewhere each makes its share of the
    plan, and whichever sees the last shard arrive does. The others return None.
    Where `options.parallel` is together, all make each shard, and the first one returns it.
    """
    teacher = as_classifier(teacher)
    recipe_class = recipe or find_recipe(options.recipe)
    inspection = inspect_teacher(teacher, recipe_class.needs == "BatchNorm")
    options = check_synthesis(teacher, options, runtime, recipe)
    assignment = Assignment(
        teacher,
        inspection.weight_hash,
        options,
        recipe_class,
        _gather_own(teacher, options, terms, generator, adversary, recipe),
        plan(options, teacher.spec.classes, runtime.seed),
        Path(out),
        runtime,
        log,
    )
    if works_together(options, runtime):
        return make_together(assignment)
    return _make_apart(assignment)


def _make_apart(assignment: Assignment) -> TransferSet | None:
    """The set, or this process's share of its shards."""
    runtime = assignment.runtime
    out = assignment.out
    machine = assignment.resolve()
    name = f"synthesis {assignment.key}"
    with as_found(assignment.teacher), shared_out(runtime, assignment.groups, name) as share:
        share.leader_first(partial(assignment.take_up, machine))
        share.begin(partial(_all_finished, out), partial(_any_begun, out))
        _make_all(assignment, share, machine)
        gather(share, out, partial(_all_finished, out), partial(_files_of, out))
        return assignment.finish() if runtime.leads else None


def _make_all(assignment: Assignment, share: Share[list[ShardJob]], machine: Machine) -> None:
    """Make the groups of shards that fall to this process."""
    make = assignment.begin(machine)
    key = f"{assignment.key} {machine.key}"
    is_told = False  # once how long all take
    for group in share:
        shards = [make(job) for job in group if not is_finished(assignment.out, job)]
        groups = 0 if is_told else share.expected + 1
        is_told = is_told or bool(shards)
        make_shards(shards, key, assignment.runtime, groups, assignment.log)


def _all_finished(out: Path, group: list[ShardJob]) -> bool:
    return all(finished(out, job) for job in group)


def _files_of(out: Path, group: list[ShardJob]) -> list[Path]:
    return [path for job in group for path in files_of(out, job)]


def _any_begun(out: Path, group: list[ShardJob]) -> bool:
    return any(state_file(out, job).is_file() for job in group)


def _gather_own(
    teacher: Classifier,
    options: SynthesisOptions,
    terms: Mapping[Term, float] | None,
    generator: nn.Module | None,
    adversary: Classifier | nn.Module | None,
    recipe: type[Recipe] | None,
) -> Own:
    """What the user brought along, checked."""
    if generator is not None:
        check_generator(generator, teacher.spec, options.generator.latent)
    student = None
    if adversary is not None:
        student = as_student(adversary, teacher.contract)
        require_alike(student, teacher, "the adversary")
    own = Own(terms or {}, generator, student, recipe)
    own.check()
    return own


def check_synthesis(
    teacher: Classifier,
    options: SynthesisOptions,
    runtime: Runtime,
    recipe: type[Recipe] | None = None,
) -> SynthesisOptions:
    """The options with everything spelled out; what the recipe or the plan can't do is refused. A
    user's own `recipe` comes in place of the one they name.
    """
    recipe_class = recipe or find_recipe(options.recipe)
    options = recipe_class.settle(options, teacher)
    check_together(options, recipe_class, runtime)
    options = _settle_abreast(options, recipe_class, runtime)
    _check_calls(options, teacher.spec.classes)
    recipe_class.check(teacher, options, runtime)
    return options


def _check_calls(options: SynthesisOptions, classes: int) -> None:
    """Refuse a shard that so few calls can't fill."""
    most = max(sum(job.quotas) for job in plan(options, classes))
    # Twice the calls are made where a class is short.
    made = 2 * options.calls * options.batch
    if most > made:
        raise EchosetError(
            f"{options.calls} calls of batch {options.batch}, and as many again, make {made:,} "
            f"images, and {most:,} are wanted; raise calls to at least {-(-most // options.batch)}"
            ", better to several times as many"
        )


def _settle_abreast(
    options: SynthesisOptions, recipe_class: type[Recipe], runtime: Runtime
) -> SynthesisOptions:
    """The options with no more shards abreast than there are."""
    if options.abreast > 1 and recipe_class.abreast is None:
        raise EchosetError(
            f"recipe {options.recipe} makes one shard at a time; leave synthesis.abreast 1"
        )
    shards = len(plan(options, classes=1))
    if options.abreast > shards:
        runtime.say(
            f"synthesis.abreast {options.abreast} is lowered to {shards}: there are no more shards"
        )
        options = replace(options, abreast=shards)
    groups = -(-shards // options.abreast)
    if options.abreast > 1 and groups < runtime.world and options.parallel == "shards":
        runtime.say(
            f"synthesis.abreast {options.abreast} leaves work for {groups} of {runtime.world} "
            "processes"
        )
    return options
