"""SSD-KD: a teacher in, a balanced transfer set out (Small Scale Data-Free Knowledge Distillation,
CVPR 2024).

Each job of the plan trains a generator, an adversarial student and a replay buffer, and leaves one
shard.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import inversion.parts.terms as objectives
from distill.data.augment import make_views
from distill.files import JsonLines, load_state, save_state, write_atomically
from distill.learner import Learner
from distill.loop import Every, Interrupted, StepProgress, StopFlag
from distill.models import Classifier, as_found, save_classifier
from distill.models.frozen import Frozen
from distill.options import DistillOptions
from distill.runtime import Runtime, Step
from distill.sets.transfer_set import TransferSet, write_shard
from distill.train import StudentState, StudentStep, build_student, identify_student, one_cycle
from distill.views import ask, to_input
from inversion.jobs import ShardJob, assemble, claim, finished, note_of, plan
from inversion.options import ReplayOptions, SynthesisOptions, TeacherViewOptions
from inversion.parts.buffer import GrowingPool, ReplayBuffer
from inversion.parts.generator import Generator
from inversion.parts.inner import InnerLoop
from inversion.parts.policy import FEATURES, START, Policy
from inversion.parts.sampling import draw_batch, record_visit
from inversion.teacher import check_teacher_views, inspect_teacher, trained_views
from synthesis_kernels.backend import (
    describe_device,
    describe_forms,
    name_form,
    random_apart,
    say_once,
)
from synthesis_kernels.divergence import divergence, same_decision
from synthesis_kernels.errors import EchosetError

LONGER = 0.05
"""Share of the adversarial student's peak rate in calls beyond those planned, which a class that is
short asks for.
"""
FIGURES = ("bn", "classes", "adversary", "alike", "hit", "taken", "agreement", "held_out_agreement")


class SynthesisState:
    """Everything one job consists of; saving a run is saving this and what `InnerLoop.state_dict`
    adds.
    """

    def __init__(
        self,
        teacher: Classifier,
        job: ShardJob,
        options: SynthesisOptions,
        device: torch.device,
        precision: torch.dtype = torch.float32,
    ) -> None:
        spec = teacher.spec
        shape = (spec.channels, spec.size, spec.size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            shape_options = {
                key: getattr(options.generator, key)
                for key in ("latent", "width", "conditioning", "blocks", "smooth")
            }
            generator = Generator(spec.channels, spec.size, spec.classes, **shape_options)
        self.generator = generator.to(device, memory_format=torch.channels_last)
        self.meta_optimiser = torch.optim.Adam(
            generator.learned(), options.generator.meta_rate, betas=(0.5, 0.999)
        )
        (student, self.learner), replay = (
            build_adversary(teacher, options, job.seed, precision),
            options.replay,
        )
        optimised = DistillOptions(learning_rate=options.adversary.learning_rate)
        self.adversary = StudentState(student, device, job.seed, optimised, self.learner)
        hints = (
            self.learner.ask_for_hints(torch.zeros(1, *shape, device=device))[1:]
            if self.learner
            else []
        )
        views = (
            options.adversary.views_per_image,
            _mixes(options),
            [hint.shape[1:] for hint in hints],
        )
        place = job.quotas, shape, options.held_out, device, *views
        self.buffer = (GrowingPool if replay.keep_all else ReplayBuffer)(*place)
        self.staged = ReplayBuffer(*place) if options.replay.replace_all else None
        self.policy = (
            Policy(device, replay.policy_rate, replay.policy or START)
            if replay.sampling == "policy"
            else None
        )
        self.bn_average: tuple[Tensor, Tensor] | None = None
        self.seed = job.seed
        self.raw_counts = torch.zeros(
            spec.classes, dtype=torch.int64, device=device
        )  # of all that was generated
        self.has_begun = False
        self.random = torch.Generator(device).manual_seed(job.seed)
        self.call = 0
        self.best_agreement, self.best_call = 0.0, 0
        self.seconds = 0.0

    def carry_moments(self, mean: Tensor, variance: Tensor, momentum: float) -> None:
        """Blend a batch's moments into those of earlier batches; the average stays where it is in
        memory.
        """
        if self.bn_average is None:
            self.bn_average = mean.clone(), variance.clone()
        for old, new in zip(self.bn_average, (mean, variance), strict=True):
            old.copy_(torch.lerp(new, old, momentum))

    def state_dict(self) -> dict[str, Any]:
        """Modules, optimisers, buffers, counters and random states."""
        return {
            "generator": self.generator.state_dict(),
            "meta_optimiser": self.meta_optimiser.state_dict(),
            "adversary": self.adversary.state_dict(),
            "buffer": self.buffer.state_dict(),
            "staged": self.staged.state_dict() if self.staged else None,
            "policy": self.policy.state_dict() if self.policy else None,
            "bn_average": self.bn_average,
            "random": self.random.get_state(),
            "raw_counts": self.raw_counts,
            "counters": (self.call, self.best_agreement, self.best_call, self.seconds),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for part in ("generator", "meta_optimiser", "adversary", "buffer"):
            getattr(self, part).load_state_dict(state[part])
        if self.staged:
            self.staged.load_state_dict(state["staged"])
        if self.policy:
            self.policy.load_state_dict(state["policy"])
        device = self.buffer.images.device
        average = state["bn_average"]
        self.bn_average = average and tuple(value.to(device) for value in average)
        self.random.set_state(state["random"].cpu())
        self.raw_counts.copy_(state["raw_counts"])
        self.call, self.best_agreement, self.best_call, self.seconds = state["counters"]


def build_adversary(
    teacher: Classifier,
    options: SynthesisOptions,
    seed: int = 0,
    precision: torch.dtype = torch.float32,
) -> tuple[Classifier, Learner | None]:
    """The adversarial student, and what asks for and compares the teacher's hints where it learns
    by them.
    """
    run = options.adversary
    student = build_student(run.student, teacher.contract, seed)
    if not run.hints:
        return student, None
    lesson = DistillOptions(loss={"hinton": 1.0, "hints": run.hints}, temperature=run.temperature)
    try:
        return student, Learner(student, teacher, lesson, precision, seed)
    except EchosetError as error:
        raise EchosetError(f"adversary.hints: {error}") from error


def check_adversary(teacher: Classifier, options: SynthesisOptions, step: Step) -> None:
    """Refuse an adversarial student that can't be built, or taught as asked."""
    learner = build_adversary(teacher, options)[1]
    if learner and step == "compiled":
        raise EchosetError(
            "step 'compiled' can't be had with adversary.hints, which look into the student; use "
            "--step eager"
        )


def synthesize(
    teacher: Classifier,
    options: SynthesisOptions = SynthesisOptions(),
    out: str | Path = "runs/set",
    runtime: Runtime = Runtime(),
) -> TransferSet | None:
    """Make a transfer set from `teacher` in the folder `out`.

    Run again after a stop, it goes on where it was; finished shards are kept. With several
    processes, each makes `plan[rank::world]` and whichever sees the last shard arrive writes the
    manifest; the others return None.
    """
    check_options(options, teacher.spec.classes)
    inspection = inspect_teacher(teacher)
    if options.objective.views is None:  # spelled out, so that the manifest says what was done
        options = replace(
            options, objective=replace(options.objective, views=trained_views(teacher.spec))
        )
    jobs = plan(options, teacher.spec.classes, runtime.seed)
    check_adversary(teacher, options, runtime.step)
    out = Path(out)
    config = asdict(options)
    config["adversary"]["student"] = identify_student(options.adversary.student)
    identity = {
        "config": config,
        "seed": runtime.seed,
        "teacher_hash": inspection.weight_hash,
        "input": teacher.contract,
    }
    key = claim(out, identity)
    machine = runtime.resolve(options.calls * options.generator.inner_steps)
    device = machine.device
    with as_found(teacher):
        teacher = teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        runtime.say(describe_forms(device))
        for job in runtime.share(jobs):
            if finished(out, job, check=True) is not None:
                (out / f".{job.file}.state").unlink(
                    missing_ok=True
                )  # of a run that was killed at its very end
            else:
                with random_apart(
                    job.seed, device
                ):  # for dropout in the adversary; everything else has its own generator
                    make_shard(
                        teacher,
                        job,
                        options,
                        out,
                        key,
                        device,
                        machine.precision,
                        runtime.quiet,
                        machine.step,
                    )
        return assemble(out, jobs, teacher, inspection.weight_hash, options, runtime.seed)


def make_shard(
    teacher: Classifier,
    job: ShardJob,
    options: SynthesisOptions,
    out: Path,
    key: str,
    device: torch.device,
    precision: torch.dtype,
    quiet: bool,
    step: Step,
) -> None:
    """Run one job to its end: calls of the generator and steps of the adversarial student, in
    turns.
    """
    state = SynthesisState(teacher, job, options, device, precision)
    state_file, log = out / f".{job.file}.state", JsonLines(out / "log.jsonl")
    # Elsewhere the same steps would end otherwise
    key = f"{key} {device.type} {precision} {step} {name_form(device)}"
    if (saved := load_state(state_file, key)) is not None:
        state.load_state_dict(saved["job"])
    frozen = Frozen(teacher, precision)
    inner = InnerLoop(
        frozen,
        state.generator,
        state.adversary.student,
        options,
        state.buffer.capacity,
        precision,
        job.seed,
        step,
    )
    if saved is not None:
        inner.load_state_dict(saved["inner"])
        saved = None  # with hints it is hundreds of megabytes
    if state.learner and not quiet:
        size = sum(hints.nbytes for hints in state.buffer.hints) * (2 if state.staged else 1)
        say_once(f"hints of the buffer: {size / 2**30:.1f} GiB, and as much in saved states")
    train = StudentStep(
        state.adversary, options.adversary.temperature, precision, step, state.learner
    )
    save_due, counts = Every(20), state.buffer.counts().tolist()
    title = f"synthesising {job.file}" if job.total > 1 else "synthesising"
    with StopFlag() as stop, StepProgress(title, options.calls, quiet, state.call) as progress:
        while not _done(state, options):
            began = time.perf_counter()
            images, logits, rank, figures = generator_call(inner, teacher, state, options)
            if device.type == "cuda":
                # Or the generator's work would count as the student's; a call ends with a look
                # anyway
                torch.cuda.synchronize()
            generator_seconds = time.perf_counter() - began
            figures["taken"] = _store(state, frozen, images, logits, rank, options, precision)
            figures |= adversary_steps(train, frozen, state, options, precision)
            state.call += 1

            names = [*FIGURES, "reward"] if state.policy else FIGURES
            values = dict(
                zip(
                    names,
                    torch.stack([figures[name].float() for name in names]).tolist(),
                    strict=True,
                )
            )
            if not all(map(math.isfinite, values.values())):
                raise EchosetError(
                    f"a loss is not finite at call {state.call}: {values}; lower "
                    "generator.learning_rate or objective.bn"
                )
            # Agreement counts from the call that fills the buffer: before, the few images held out
            # may all be of one class.
            if (
                sum(counts) < state.buffer.capacity
                or values["held_out_agreement"] > state.best_agreement + 1e-3
            ):
                state.best_agreement, state.best_call = values["held_out_agreement"], state.call
            counts = state.buffer.counts().tolist()
            state.seconds += (elapsed := time.perf_counter() - began)
            timing = {"seconds": elapsed, "generator_seconds": generator_seconds}
            if state.policy:
                timing["policy"] = state.policy.theta.tolist()
            log.write("call", shard=job.index, call=state.call, counts=counts, **timing, **values)
            longer = (
                2 if state.call >= options.calls and sum(counts) < state.buffer.capacity else 1
            )  # as in _done
            progress.update(
                state.call,
                _figures_line(values, counts, job, options.batch / elapsed),
                longer * options.calls,
            )
            stopping = stop.raised  # asked once: a signal may come between two looks
            if stopping or save_due():
                with save_due.paying():
                    save_state(
                        state_file, key, {"job": state.state_dict(), "inner": inner.state_dict()}
                    )
            if stopping and not _done(state, options):
                raise Interrupted(f"synthesis stopped at call {state.call}; {state_file} keeps it")
    if options.adversary.keep:
        save_classifier(state.adversary.student, out / f"adversary-{job.index:05d}.safetensors")
    made_with = {
        "precision": str(precision).removeprefix("torch."),
        "kernels": name_form(device),
        "step": step,
    }
    _finish(state, job, out, device, made_with)
    state_file.unlink(missing_ok=True)
    if stop.raised:
        raise Interrupted(f"synthesis stopped; {out / job.file} is finished")


def generator_call(
    inner: InnerLoop,
    teacher: Classifier,
    state: SynthesisState,
    options: SynthesisOptions,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """The generator learns a batch in a few steps, and keeps of them what `generator.learning`
    says.

    Returns the batch as uint8, the teacher's logits for exactly these images, their rank (φ) and
    figures for the log.
    """
    goal, device = options.objective, state.buffer.images.device
    growing = state.staged if state.staged is not None and bool(state.buffer.full) else state.buffer
    wanted = draw_targets(growing, options, state.random)
    noise = torch.randn(
        options.batch, options.generator.latent, generator=state.random, device=device
    )
    held = growing.counts()
    state.adversary.student.eval()
    adversarial = goal.adversary > 0 and state.call >= goal.adversary_after
    inner.begin(noise, state.bn_average)
    for step in range(options.generator.inner_steps):
        view = torch.full((), state.call * options.generator.inner_steps + step, device=device)
        found = inner.run(wanted, view, held, adversarial)
    images = inner.end(wanted)
    state.meta_optimiser.step()
    state.carry_moments(found.mean, found.variance, goal.bn_momentum)

    pixels = (images * 255).round().to(torch.uint8)
    logits = ask(
        teacher, to_input(pixels), torch.float32
    )  # in full precision: these decide the stored labels
    state.raw_counts.index_add_(0, decided := logits.argmax(1), torch.ones_like(decided))
    rank = (
        objectives.phi(logits, held, state.buffer.capacity, goal.gamma)
        if goal.phi
        else torch.zeros_like(logits[:, 0])
    )
    figures = {
        "bn": found.bn.clone(),
        "classes": found.wrong_class.mean(),
        "adversary": found.fooling.mean(),
        "alike": found.alike.clone(),
        "hit": (decided == wanted).float().mean(),
    }
    return pixels, logits, rank, figures


def adversary_steps(
    train: StudentStep,
    teacher: Frozen,
    state: SynthesisState,
    options: SynthesisOptions,
    precision: torch.dtype,
) -> dict[str, Tensor]:
    """Train the adversarial student on draws from the buffer, write priorities back, and ask the
    held-out slots.
    """
    buffer, run = state.buffer, options.adversary
    if not state.has_begun:  # once only: the answer has to come from the device
        state.has_begun = bool((buffer.filled & ~buffer.is_held_out).any())
    if not state.has_begun or state.call < run.begins:
        nothing = torch.zeros((), device=buffer.images.device)
        return {"agreement": nothing, "held_out_agreement": nothing, "reward": nothing}
    total = (options.calls - run.begins) * run.steps
    agreement = torch.zeros((), device=buffer.images.device)
    if state.policy:
        state.policy.begin(state.random)
        before = _ask_held_out(state, precision)[1]
    state.adversary.student.train()
    mixes = _mixes(options)
    pool = buffer.to_mix(state.random) if mixes and not run.views_per_image else buffer.images
    for _ in range(run.steps):
        step = state.adversary.step
        state.adversary.optimiser.set_share(
            one_cycle(step, total, warmup=0.0) if step < total else LONGER
        )
        progress = min(step / total, 1.0)
        drawn, weights = draw_batch(
            buffer, run.batch, options.replay, progress, state.random, state.policy, state.call
        )
        if run.views_per_image:
            which = torch.randint(
                run.views_per_image, (run.batch,), generator=state.random, device=drawn.device
            )
            seen = (
                to_input(buffer.seen[drawn, which])
                if mixes
                else _view(buffer, pool, drawn, which, options, state.seed)
            )
            answers = buffer.answers[drawn, which]
            hints = [each[drawn, which] for each in buffer.hints]
        else:
            view = step * run.batch + torch.arange(
                run.batch, device=drawn.device
            )  # never the same view twice
            seen = make_views(pool, drawn, view, options.views, state.seed)
            answers, hints = ask(teacher, seen, precision), []
        logits = train(seen, answers, weights, *hints)
        record_visit(buffer, drawn, divergence(answers, logits), weights)
        agreement += same_decision(answers, logits).float().mean() / run.steps
    held_out_agreement, after = _ask_held_out(state, precision)
    figures = {"agreement": agreement, "held_out_agreement": held_out_agreement}
    if state.policy:
        figures["reward"] = (before.clamp_min(1e-6) / after.clamp_min(1e-6)).log()
        state.policy.learn(figures["reward"])
    return figures


def draw_targets(
    buffer: ReplayBuffer, options: SynthesisOptions, generator: torch.Generator
) -> Tensor:  # (B,)
    """The classes to ask for: half of them all alike, half by what the buffer lacks.

    The teacher's running statistics describe all classes together, so a batch of lacking classes
    alone could not match.
    """
    device = buffer.quotas.device
    count = options.batch // 2 if options.replay.balanced_targets else options.batch
    classes = torch.arange(buffer.classes, device=device)
    if (
        count % buffer.classes
    ):  # some get a place more than others, and not the same ones every time
        classes = torch.randperm(buffer.classes, device=device, generator=generator)
    even = classes[torch.arange(count, device=device) % buffer.classes]
    if not options.replay.balanced_targets:
        return even
    lacking = (buffer.quotas - buffer.counts()).float()
    chances = torch.where(lacking.sum() > 0, lacking, torch.ones_like(lacking))
    drawn = torch.multinomial(chances, options.batch - count, replacement=True, generator=generator)
    return torch.cat([even, drawn])


def _store(
    state: SynthesisState,
    teacher: Frozen,
    images: Tensor,
    logits: Tensor,
    rank: Tensor,
    options: SynthesisOptions,
    precision: torch.dtype,
) -> Tensor:  # () images taken in
    """Partial refresh: new images replace the least useful. With `replace_all`, they wait until
    they replace everything.
    """
    replay, into = options.replay, state.buffer
    refresh, half_life = replay.refresh, replay.half_life
    if state.staged is not None:
        refresh, half_life = 0.0, 0.0
        if int(into.filled.sum()) == into.capacity:
            into = state.staged
    taken = into.add(images, logits, rank, state.call, refresh, half_life)
    _ask_views(into, teacher, state, options, precision)
    if into is state.staged and bool(into.filled[:-1].all()):
        state.buffer.take_over(into)
    return taken


def _ask_views(
    buffer: ReplayBuffer,
    teacher: Frozen,
    state: SynthesisState,
    options: SynthesisOptions,
    precision: torch.dtype,
) -> None:
    """Store the teacher's answers to views of the newest images, but for those held out. Views that
    mix two images are stored, too: the other image may be replaced before they are used.
    """
    if not options.adversary.views_per_image:
        return
    newest, mixes = buffer.newest, _mixes(options)
    newest = torch.where(buffer.is_held_out[newest], buffer.capacity, newest)
    pool = buffer.to_mix(state.random) if mixes else buffer.images
    for view in range(options.adversary.views_per_image):
        seen = _view(buffer, pool, newest, torch.full_like(newest, view), options, state.seed)
        if mixes:
            pixels = (seen * 255).round().to(torch.uint8)
            buffer.seen[newest, view] = pixels
            seen = to_input(pixels)
        found = (
            state.learner.ask_for_hints(seen) if state.learner else [ask(teacher, seen, precision)]
        )
        for kept, new in zip([buffer.answers, *buffer.hints], found, strict=True):
            kept[newest, view] = new
    for kept in (buffer.answers, buffer.seen, *buffer.hints):
        kept[-1] = 0


def _view(
    buffer: ReplayBuffer,
    pool: Tensor,
    slots: Tensor,
    which: Tensor,
    options: SynthesisOptions,
    seed: int,
) -> Tensor:  # (B, C, H, W)
    """The views of an image that the teacher answers for; the next image in its slot has others."""
    view = buffer.round[slots] * options.adversary.views_per_image + which
    return make_views(pool, slots, view, options.views, seed)


def _mixes(options: SynthesisOptions) -> bool:
    """Whether the adversarial student sees views of two images at once."""
    return bool(options.views.mixup or options.views.cutmix)


def _ask_held_out(state: SynthesisState, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Agreement of teacher and adversarial student on images it never trained on, and their mean
    divergence there, which is also each one's priority.
    """
    buffer, student = state.buffer, state.adversary.student.eval()
    slots = buffer.to_ask()
    logits = ask(student, to_input(buffer.images[slots]), precision)
    filled = buffer.filled[slots]
    theirs = filled & buffer.is_held_out[slots]
    apart, count = divergence(buffer.logits[slots], logits), filled.sum().clamp_min(1)
    buffer.priority[slots] = torch.where(theirs, apart, buffer.priority[slots])
    return (same_decision(buffer.logits[slots], logits) & filled).sum() / count, (
        apart * filled
    ).sum() / count


def _done(state: SynthesisState, options: SynthesisOptions) -> bool:
    """Full, balanced and no longer rising; or out of calls (twice as many while some class is still
    short).
    """
    if not bool(state.buffer.full):
        return state.call >= 2 * options.calls
    waited = state.call - max(state.best_call, options.adversary.begins)
    return state.call >= options.calls or (state.call > 0 and waited >= options.patience)


def _figures_line(values: dict[str, float], counts: list[int], job: ShardJob, rate: float) -> str:
    short = [
        (quota - count, label)
        for label, (count, quota) in enumerate(zip(counts, job.quotas, strict=True))
        if count < quota
    ]
    kept = f"kept {sum(counts)}/{sum(job.quotas)}"
    if len(counts) <= 10:
        kept += f" [{' '.join(map(str, counts))}]"
    elif short:
        kept += f", class {max(short)[1]} lacks {max(short)[0]}"
    return (
        f"{kept}  bn {values['bn']:.2f}  class {values['classes']:.2f}  adversary "
        f"{values['adversary']:.2f}  "
        f"agreement {values['held_out_agreement']:.3f}  {rate:.0f} images/s"
    )


def check_options(options: SynthesisOptions, classes: int) -> None:
    """Refuse what can't work, by name."""
    least = {"images": 1, "shard_images": 1, "batch": 2, "calls": 1, "patience": 1}
    for name, value in least.items():
        if getattr(options, name) < value:
            raise EchosetError(f"{name} must be at least {value}, got {getattr(options, name)}")
    numbers = [
        ("generator", name)
        for name in (
            "blocks",
            "smooth",
            "conditioning",
            "learning_rate",
            "latent_rate",
            "meta_rate",
        )
    ]
    numbers += [("objective", name) for name in ("bn", "classes", "adversary", "spread", "gamma")]
    for part, name in [*numbers, ("adversary", "learning_rate")]:
        if not 0 <= (value := getattr(getattr(options, part), name)) < math.inf:
            raise EchosetError(f"{part}.{name} must be a number of at least 0, got {value}")
    parts = {
        "inner_steps": "generator",
        "latent": "generator",
        "width": "generator",
        "batch": "adversary",
        "steps": "adversary",
    }
    for name, part in parts.items():
        if (value := getattr(getattr(options, part), name)) < 1:
            raise EchosetError(f"{part}.{name} must be at least 1, got {value}")
    for name in ("begins", "views_per_image"):
        if (value := getattr(options.adversary, name)) < 0:
            raise EchosetError(f"adversary.{name} must be at least 0, got {value}")
    begins, after = options.adversary.begins, options.objective.adversary_after
    if begins >= options.calls:
        raise EchosetError(
            f"adversary.begins {begins} leaves the adversarial student nothing to learn in "
            f"{options.calls} calls"
        )
    if begins and options.objective.adversary and after <= begins:
        raise EchosetError(
            f"objective.adversary_after {after} would ask an adversarial student that has learnt "
            "nothing yet (adversary.begins "
            f"{begins}); raise it to more than {begins}"
        )
    if not 0 <= options.adversary.hints < math.inf:
        raise EchosetError(
            f"adversary.hints must be a number of at least 0, got {options.adversary.hints}"
        )
    if options.adversary.hints and not options.adversary.views_per_image:
        raise EchosetError(
            "adversary.hints are kept for the views in adversary.views_per_image, which is 0; set "
            "it to 4, say"
        )
    if options.adversary.temperature <= 0:
        raise EchosetError(
            f"adversary.temperature must be positive, got {options.adversary.temperature}"
        )
    _check_replay(options.replay)
    check_teacher_views(options.objective.views or TeacherViewOptions(), "objective.views")
    for name, value in (
        ("held_out", options.held_out),
        ("objective.bn_momentum", options.objective.bn_momentum),
    ):
        if not 0 <= value < 1:
            raise EchosetError(f"{name} must lie in [0, 1), got {value}")
    jobs = plan(options, classes)
    most = max(sum(job.quotas) for job in jobs)
    if most > 2 * options.calls * options.batch:  # as many as there are where a class is short
        raise EchosetError(
            f"{options.calls} calls of batch {options.batch}, and as many again, make "
            f"{2 * options.calls * options.batch:,} "
            f"images, and {most:,} are wanted; raise calls to at least "
            f"{-(-most // options.batch)}, better to several times as many"
        )
    for quotas in [job.quotas for job in jobs] if options.replay.sampling == "policy" else []:
        slots = [sum(quotas)] if options.replay.keep_all else quotas
        if not ReplayBuffer(slots, (1, 1, 1), options.held_out).is_held_out.any():
            raise EchosetError(
                "replay.sampling policy learns from held-out images, and held_out "
                f"{options.held_out:g} of {sum(quotas)} images "
                "is none; raise held_out, or images to two a class at least"
            )


def _check_replay(replay: ReplayOptions) -> None:
    for name in ("alpha", "half_life", "policy_rate"):
        if not 0 <= getattr(replay, name) < math.inf:
            raise EchosetError(
                f"replay.{name} must be a number of at least 0, got {getattr(replay, name)}"
            )
    for name in ("refresh", "beta"):
        if not 0 <= getattr(replay, name) <= 1:
            raise EchosetError(f"replay.{name} must lie in [0, 1], got {getattr(replay, name)}")
    if replay.keep_all and (replay.balanced_targets or replay.replace_all):
        raise EchosetError(
            "replay.keep_all has no quotas: set replay.balanced_targets and replay.replace_all to "
            "false"
        )
    if replay.policy and replay.sampling != "policy":
        raise EchosetError(
            f"replay.policy is given and draws are by {replay.sampling}: set replay.sampling to "
            "policy"
        )
    if replay.policy and (
        len(replay.policy) != len(FEATURES) or not all(map(math.isfinite, replay.policy))
    ):
        raise EchosetError(
            f"replay.policy needs {len(FEATURES)} weights ({', '.join(FEATURES)}), got "
            f"{list(replay.policy)}"
        )


def _finish(
    state: SynthesisState, job: ShardJob, out: Path, device: torch.device, made_with: dict[str, str]
) -> None:
    """Write the shard, then the note that makes it count as finished; `made_with`: what its bytes
    depend on beside the options.
    """
    buffer = state.buffer
    keep = buffer.filled
    tensors = {
        name: getattr(buffer, name)[keep] for name in ("images", "logits", "priority", "round")
    }
    # float16 ends at 65,504; a logit beyond it would become infinite.
    tensors |= {"labels": buffer.labels[keep], "logits": tensors["logits"].clamp(-65504, 65504)}
    note_of(out, job).unlink(
        missing_ok=True
    )  # of a shard that was lost: it does not count for this one
    digest = write_shard(out / job.file, tensors)
    note = {
        "file": job.file,
        "sha256": digest,
        "count": int(keep.sum()),
        "seed": job.seed,
        "calls": state.call,
        "counts": buffer.counts().tolist(),
        "raw_counts": state.raw_counts.tolist(),
    }
    if state.policy:
        note["policy"] = [round(value, 4) for value in state.policy.theta.tolist()]
    note |= {
        "seconds": round(state.seconds, 3),
        "device": describe_device(device),
        **made_with,
        "torch": torch.__version__,
        "held_out_agreement": round(state.best_agreement, 4),
    }
    write_atomically(note_of(out, job), json.dumps(note).encode())
