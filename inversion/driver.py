"""The driver: plan the shards, step the recipe until each is done, write it, then the manifest.

It knows no recipe by name.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from distill.files import load_state, save_state, write_atomically
from distill.loop import Interrupted, Loop
from distill.models import Classifier, as_found
from distill.models.classifier import on_device
from distill.runtime import Machine, Runtime
from distill.sets.transfer_set import TransferSet, write_shard
from distill.students import identify_student
from distill.tasks.places import count_decisions
from inversion.jobs import ShardJob, assemble, claim, finished, note_of, plan
from inversion.options import SynthesisOptions
from inversion.recipes import Recipe, find_recipe
from inversion.teacher import inspect_teacher
from synthesis_kernels.backend import describe_device, describe_forms, random_apart
from synthesis_kernels.errors import EchosetError

REMEDY = "lower generator.learning_rate or objective.bn"


def synthesize(
    teacher: Classifier,
    options: SynthesisOptions = SynthesisOptions(),
    out: str | Path = "runs/set",
    runtime: Runtime = Runtime(),
) -> TransferSet | None:
    """Make a transfer set from `teacher` in the folder `out`.

    Run again after a stop, it goes on where it was; finished shards are kept. With several
    processes, each makes its share of the plan, and whichever sees the last shard arrive writes
    the manifest; the others return None.
    """
    recipe_class = find_recipe(options.recipe)
    inspection = inspect_teacher(teacher, recipe_class.needs_batch_norm)
    options = check_synthesis(teacher, options, runtime)
    jobs = plan(options, teacher.spec.classes, runtime.seed)
    out = Path(out)
    key = claim(out, _identity(teacher, options, runtime.seed, inspection.weight_hash))
    machine = runtime.resolve(options.calls * options.generator.inner_steps)
    with as_found(teacher):
        teacher = on_device(teacher, machine.device).eval().requires_grad_(False)
        runtime.say(describe_forms(machine.device))
        for job in runtime.share(jobs):
            if finished(out, job, check=True) is not None:
                _state_file(out, job).unlink(missing_ok=True)  # of a run killed at its very end
                continue
            # For dropout in the adversary; everything else has a generator of its own.
            with random_apart(job.seed, machine.device):
                recipe = recipe_class(teacher, job, options, machine)
                make_shard(recipe, job, out, f"{key} {machine.key}", machine, runtime)
        return assemble(out, jobs, teacher, inspection.weight_hash, options, runtime.seed)


def check_synthesis(
    teacher: Classifier, options: SynthesisOptions, runtime: Runtime
) -> SynthesisOptions:
    """The options with everything spelled out; what the recipe or the plan can't do is refused."""
    recipe_class = find_recipe(options.recipe)
    options = recipe_class.settle(options, teacher)
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


def make_shard(
    recipe: Recipe, job: ShardJob, out: Path, key: str, machine: Machine, runtime: Runtime
) -> None:
    """Run one job to its end."""
    file = _state_file(out, job)
    saved = load_state(file, key)
    if saved is not None:
        recipe.load_state_dict(saved)
        saved = None  # with hints it is hundreds of megabytes

    def save(seconds: float) -> Path:
        save_state(file, key, recipe.state_dict())
        return file

    notice = recipe.notice()
    if notice:
        runtime.say(notice)
    title = f"synthesising {job.file}" if job.total > 1 else "synthesising"
    loop = Loop(
        title,
        recipe.planned,
        runtime.quiet,
        recipe.call,
        save=save,
        log=out / "log.jsonl",
        work="synthesis",
    )
    with loop:
        while not recipe.done:
            result = recipe.step()
            loop.record(
                "call",
                result.figures,
                REMEDY,
                f"call {recipe.call}",
                shard=job.index,
                call=recipe.call,
                counts=result.counts,
                **result.notes,
            )
            loop.advance(recipe.call, result.line, recipe.planned, finished=recipe.done)
    recipe.leave(out)
    _write(recipe, job, out, machine)
    file.unlink(missing_ok=True)
    if loop.stopping:
        raise Interrupted(f"synthesis stopped; {out / job.file} is finished")


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
    write_atomically(note_of(out, job), json.dumps(note).encode())


def _state_file(out: Path, job: ShardJob) -> Path:
    return out / f".{job.file}.state"


def _identity(
    teacher: Classifier, options: SynthesisOptions, seed: int, weight_hash: str
) -> dict[str, object]:
    """What a folder's content follows from: anything else makes another set."""
    config = asdict(options)
    config["adversary"]["student"] = identify_student(options.adversary.student)
    return {
        "config": config,
        "seed": seed,
        "teacher_hash": weight_hash,
        "input": teacher.contract,
    }
