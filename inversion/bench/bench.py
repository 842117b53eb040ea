"""How fast: each kernel, the synthesis step and the distillation step, against their definitions
and the peers' form.

Both sides of a comparison are timed in turns in one run, so that whatever else the machine does
meets both alike (but for the pool, whose workers read ahead and are timed first). The limit is
measured in the same run: the machine's own matrix and copy rates, beside the multiply-adds counted
in the step.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from distill.data.augment import make_views
from distill.files import write_json
from distill.loop import StepProgress
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.options import ViewOptions
from distill.train import StudentState, StudentStep, build_student
from distill.views import CHUNK, ask
from inversion.bench import peers
from inversion.cli.schema import BenchRun
from inversion.options import GeneratorOptions, ObjectiveOptions, SynthesisOptions
from inversion.parts.generator import Generator
from inversion.parts.inner import InnerLoop
from inversion.teacher import load_teacher
from synthesis_kernels.backend import (
    asked_form,
    describe_device,
    describe_forms,
    free_cycles,
    kernel_form,
    repository_commit,
    resolve_device,
    resolve_precision,
)
from synthesis_kernels.bn_match import bn_match, fold_batch_norm
from synthesis_kernels.conv3x3 import conv3x3, conv3x3_reference, runs
from synthesis_kernels.divergence import divergence, divergence_reference
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.frozen_conv3x3 import FrozenConv3x3, pays
from synthesis_kernels.priority import draw_distinct
from synthesis_kernels.step import Step, resolve_step
from synthesis_kernels.upsample_conv import upsample_conv, upsample_conv_reference
from synthesis_kernels.views import ViewPlan, views, views_reference

Work = Callable[[], object]
HEADLINES = (
    "synthesis_step.speedup",
    "distillation_step.speedup",
    "pool.speedup",
    "bn_match.speedup",
    "synthesis_step.memory_ratio",
    "synthesis_step.share_of_limit",
)
COMPARISONS = 13  # calls of Bench.compare below, for the progress bar
PHOTOGRAPHS = ViewOptions(rotate=0, scale=0, shift=0.125, flip=True)


class Bench:
    """What all measurements share."""

    def __init__(self, run: BenchRun, progress: StepProgress | None = None) -> None:
        self.run, self.progress = run, progress
        self.device = resolve_device(run.device)
        self.precision = resolve_precision(self.device, run.precision)
        self.step: Step = resolve_step(run.step, self.device, steps=10**6)
        self.done = 0

    def classifiers(self, tuned: bool) -> tuple[Classifier, Classifier]:
        """Fresh teacher and student; channels last for our side."""
        teacher = load_teacher(self.run.teacher, untrained=True)
        student = build_student(self.run.student, teacher.contract, 1)
        layout = torch.channels_last if tuned else torch.contiguous_format
        return teacher.to(self.device, memory_format=layout), student.to(
            self.device, memory_format=layout
        )

    def generator(self, teacher: Classifier) -> Generator:
        """Of the size that peers use for 32×32 images."""
        spec, layout = teacher.spec, torch.channels_last
        shape = {"latent": self.options.generator.latent, "width": self.options.generator.width}
        return Generator(spec.channels, spec.size, spec.classes, **shape).to(
            self.device, memory_format=layout
        )

    @property
    def options(self) -> SynthesisOptions:
        return SynthesisOptions(
            batch=self.run.batch,
            generator=GeneratorOptions(latent=256, width=64),
            objective=ObjectiveOptions(bn_relative=False),
        )

    def compare(self, **work: Work) -> dict[str, dict[str, float]]:
        """Milliseconds of each, timed in turns: median and extremes over the repeats."""
        for each in work.values():
            for _ in range(2):
                each()
        times: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(self.run.repeats):
            for name, each in work.items():
                times[name].append(self.time(each))
        self.done += 1
        if self.progress:
            self.progress.update(self.done)
        return {name: _milliseconds(seconds) for name, seconds in times.items()}

    def time(self, work: Work) -> float:
        """Seconds of one call; of several, where one is too short to be timed."""
        self._wait()
        began, count = time.perf_counter(), 0
        while True:
            work()
            count += 1
            if self.device.type == "cuda" and count % 10:
                continue  # a look at the clock would mean waiting for the device
            self._wait()
            if (elapsed := time.perf_counter() - began) > 0.02:
                return elapsed / count

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {
        "ms": 1e3 * statistics.median(seconds),
        "least_ms": 1e3 * min(seconds),
        "most_ms": 1e3 * max(seconds),
    }


def bench(run: BenchRun) -> dict[str, Any]:
    """Measure everything; the document's headline figures stand at its top level, the details below
    them.
    """
    if (
        run.repeats < 1
        or run.batch < 2
        or run.views < 1
        or run.images < run.batch
        or run.epochs < 1
    ):
        raise EchosetError(
            "bench wants repeats, views and epochs of at least 1, a batch of 2 or more, and "
            "images for one batch"
        )
    earlier = _read(run.against)
    document: dict[str, Any] = {}
    with StepProgress("measuring", COMPARISONS, run.quiet) as progress:
        bench = Bench(run, progress)
        size = bench.classifiers(tuned=False)[0].spec.size  # a name that is none is refused now
        if size % 4 or not 8 <= size <= 32:
            raise EchosetError(
                "bench's generators double twice: images must have 8 to 32 pixels, a multiple of "
                f"4, not {size}"
            )
        document["limit"] = ceilings(bench)
        document["kernels"] = kernels(bench)
        document["bn_match"] = bn_match_times(bench)
        document["pool"] = pool_times(bench)
        document["synthesis_step"] = synthesis_times(bench, document["limit"])
        document["distillation_step"] = distillation_times(bench)
        document["synthesis_step"] |= memory(bench)
        progress.update(COMPARISONS)
    headlines = {name: document[name.split(".")[0]][name.split(".")[1]] for name in HEADLINES}
    document = headlines | document | about(bench)
    if earlier is not None:
        document["against"] = {
            "file": run.against,
            "device": earlier.get("device"),
            "differs": {
                name: [earlier.get(name), document[name]]
                for name in ALIKE
                if earlier.get(name) != document[name]
            },
            "change": {
                name: document[name] / earlier[name] for name in HEADLINES if earlier.get(name)
            },
        }
    if run.save:
        write_json(Path(run.save), document)
    return document


ALIKE = ("device", "precision", "kernel_forms", "step", "teacher", "student", "batch", "torch")
"""What two files should have in common to be compared."""


def about(bench: Bench) -> dict[str, Any]:
    """What the figures were measured on, and with."""
    return {
        "device": describe_device(bench.device),
        "precision": str(bench.precision).removeprefix("torch."),
        "kernel_forms": describe_forms(bench.device),
        "step": bench.step,
        "teacher": bench.run.teacher.model,
        "student": bench.run.student.model,
        "batch": bench.run.batch,
        "repeats": bench.run.repeats,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": repository_commit(),
    }


def ceilings(bench: Bench) -> dict[str, Any]:
    """What the machine does at best: large matrix products (GFLOP/s, in float32 and in the
    precision measured) and a large copy (GB/s). Processors without bfloat16 are not asked for it:
    such a product takes them half a minute.
    """
    side = 8192 if bench.device.type == "cuda" else 2048
    found = {}
    for precision in {torch.float32: None, bench.precision: None}:
        a, b = (torch.randn(side, side, device=bench.device).to(precision) for _ in range(2))
        out = torch.empty_like(a)
        times = bench.compare(product=lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
        found[f"{str(precision).removeprefix('torch.')}_gflops"] = (
            2 * side**3 / times["product"]["least_ms"] / 1e6
        )
    source = torch.empty(64 << 20, device=bench.device)
    target = torch.empty_like(source)
    copied = bench.compare(copy=lambda: target.copy_(source))
    return found | {"copy_gb_per_s": 2 * source.numel() * 4 / copied["copy"]["least_ms"] / 1e6}


def kernels(bench: Bench) -> dict[str, Any]:
    """Each kernel against its definition in plain torch, forward and backward where it has one."""
    batch, device = bench.run.batch, bench.device
    make = lambda *shape: torch.randn(*shape, device=device)  # noqa: E731
    last = lambda x: x.to(bench.precision).contiguous(memory_format=torch.channels_last)  # noqa: E731

    def trained(function: Callable[..., Tensor], *inputs: Tensor) -> Work:
        inputs = tuple(
            x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs
        )
        grad = torch.randn_like(function(*inputs))
        return lambda: torch.autograd.grad(function(*inputs), inputs, grad)

    found = {}
    dense = make(8, 21, 128, 128), make(8, 21, 128, 128)
    small = make(batch, 100), make(batch, 100)
    for name, logits in (("divergence", small), ("divergence, dense", dense)):
        ours, definition = (
            trained(lambda t, s, f=f: f(t, s, 4.0), *logits)
            for f in (divergence, divergence_reference)
        )
        found[name] = bench.compare(ours=ours, definition=definition)
    x, weight = last(make(batch, 128, 16, 16)), last(make(64, 128, 3, 3) * 0.03)
    found["upsample_conv"] = bench.compare(
        ours=trained(upsample_conv, x, weight),
        definition=trained(upsample_conv_reference, x, weight),
    )
    layer = torch.nn.Conv2d(64, 64, 3, padding=1, bias=False, device=device)
    x, weight = last(make(batch, 64, 16, 16)), last(layer.weight.detach())
    if bench.precision is torch.bfloat16 and pays(layer):
        definition = trained(lambda x: conv3x3_reference(x, weight), x)
        found["conv3x3"] = bench.compare(
            ours=trained(FrozenConv3x3(layer), x), definition=definition
        )
    elif bench.precision is torch.float32 and runs(x, weight):
        found["conv3x3"] = bench.compare(
            ours=trained(conv3x3, x, weight), definition=trained(conv3x3_reference, x, weight)
        )
    pool = torch.randint(0, 256, (bench.run.images, 3, 32, 32), dtype=torch.uint8, device=device)
    index, view = (
        torch.randint(len(pool), (batch,), device=device),
        torch.arange(batch, device=device),
    )
    plan = ViewPlan(crop=4, flip=True, cutout=8, mixup=0.5)
    found["views"] = bench.compare(
        ours=lambda: views(pool, index, view, plan, 0),
        definition=lambda: views_reference(pool, index, view, plan, 0),
    )
    chances = torch.rand(50_000, device=device)
    generator = torch.Generator(device).manual_seed(0)
    found["priority"] = bench.compare(
        ours=lambda: draw_distinct(chances, batch, generator),
        definition=lambda: torch.multinomial(
            chances, batch, replacement=False, generator=generator
        ),
    )
    return {
        name: times | {"speedup": times["definition"]["ms"] / times["ours"]["ms"]}
        for name, times in found.items()
    }


def bn_match_times(bench: Bench) -> dict[str, Any]:
    """BatchNorm, ReLU and batch moments of a 128×32×32×32 input, forward and backward.

    Ours does all three. The peers' hook does the moments alone (`hook_ms`); the speed-up is against
    that, and `with_norm_speedup` against the hook together with the BatchNorm and ReLU that it
    watches.
    """
    shape, device = (128, 32, 32, 32), bench.device
    running_mean, running_variance = torch.zeros(32, device=device), torch.ones(32, device=device)
    scale, shift = fold_batch_norm(running_mean, running_variance, None, None, 1e-5)
    x = torch.randn(shape, device=device)
    ours = x.to(bench.precision).contiguous(memory_format=torch.channels_last).requires_grad_()
    theirs = x.clone().requires_grad_()
    grad, ours_grad = torch.randn(shape, device=device), torch.randn_like(ours)

    def match(function: Callable = bn_match) -> None:
        y, mean, variance = function(ours, scale, shift, True)
        distance = (mean - running_mean).norm() + (variance - running_variance).norm()
        torch.autograd.grad([y, distance], ours, [ours_grad, torch.ones_like(distance)])

    def definition() -> None:
        with kernel_form("reference"):
            match()

    def hook() -> None:
        torch.autograd.grad(peers.hook_statistics(theirs, running_mean, running_variance), theirs)

    def hook_and_norm() -> None:
        distance = peers.hook_statistics(theirs, running_mean, running_variance)
        y = torch.relu(torch.nn.functional.batch_norm(theirs, running_mean, running_variance))
        torch.autograd.grad([y, distance], theirs, [grad, torch.ones_like(distance)])

    times = bench.compare(
        ours=match, definition=definition, peers=hook, hook_and_norm=hook_and_norm
    )
    return times | {
        "speedup": times["peers"]["ms"] / times["ours"]["ms"],
        "with_norm_speedup": times["hook_and_norm"]["ms"] / times["ours"]["ms"],
    }


def pool_times(bench: Bench) -> dict[str, Any]:
    """A batch of cropped, flipped, normalised views: from a uint8 pool on the device, and from PNG
    files by worker processes.
    """
    run, count = bench.run, min(bench.run.images, 10 * bench.run.batch)
    pool = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    ours, steps = pool.to(bench.device), iter(range(10**9))
    mean, std = (torch.full((1, 3, 1, 1), value, device=bench.device) for value in (0.5, 0.25))

    def batch() -> Tensor:
        index = torch.randint(count, (run.batch,), device=bench.device)
        return (
            make_views(ours, index, torch.full_like(index, next(steps)), PHOTOGRAPHS, 0) - mean
        ) / std

    with tempfile.TemporaryDirectory() as folder:
        batches = peers.png_batches(
            peers.PngFolder(Path(folder), pool, (0.5,) * 3, (0.25,) * 3), run.batch
        )
        # Workers read ahead: only a whole pass, more than they hold ready, tells what a batch
        # costs.
        for _ in range(2 + peers.WORKERS * 2):
            next(batches)

        theirs = []
        for _ in range(run.repeats):
            began = time.perf_counter()
            for _ in range(20):
                next(batches).to(bench.device)
            theirs.append((time.perf_counter() - began) / 20)
        batches.close()  # not in turns: workers that read ahead would take the time of ours
    times = bench.compare(ours=batch)
    times["peers"] = _milliseconds(theirs)
    return times | {"speedup": times["peers"]["ms"] / times["ours"]["ms"]}


def our_synthesis_step(bench: Bench) -> Work:
    """One inner step, adversary and average in it, as the loop runs it."""
    teacher, student = bench.classifiers(tuned=True)
    generator = bench.generator(teacher)
    frozen = Frozen(teacher.requires_grad_(False), bench.precision)
    inner = InnerLoop(
        frozen, generator, student.eval(), bench.options, 5000, bench.precision, 0, bench.step
    )
    noise = torch.randn(bench.run.batch, bench.options.generator.latent, device=bench.device)
    average = inner.target.mean.clone(), inner.target.variance.clone()
    wanted = torch.arange(bench.run.batch, device=bench.device) % teacher.spec.classes
    view, held = (
        torch.zeros((), dtype=torch.int64, device=bench.device),
        torch.ones(teacher.spec.classes, device=bench.device),
    )
    inner.begin(noise, average)
    return lambda: inner.run(wanted, view, held, adversarial=True)


def their_synthesis_step(bench: Bench) -> Work:
    """The same network sizes in the peers' formulation."""
    teacher, student = bench.classifiers(tuned=False)
    size = bench.options.generator
    generator = peers.PlainGenerator(teacher.spec, size.latent, size.width).to(bench.device)
    return _freely(
        bench,
        peers.synthesis_step(
            teacher, student, generator, bench.run.batch, bench.options.objective.bn
        ),
    )


def _freely(bench: Bench, step: Work) -> Work:
    """The peers' step with cuDNN's fastest kernels, TF32 among them, which ours are denied so that
    a seed fixes the result.
    """
    if bench.device.type != "cuda":
        return step

    def run() -> None:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=True, deterministic=False, allow_tf32=True
        ):
            step()

    return run


def synthesis_times(bench: Bench, limit: dict[str, float]) -> dict[str, Any]:
    """The whole inner step: generator, teacher with BN loss, student, backward, update. And how
    near the limit it is.
    """
    ours, theirs = our_synthesis_step(bench), their_synthesis_step(bench)
    times = bench.compare(ours=ours, peers=theirs)
    eager = Bench(bench.run)
    eager.step = "eager"  # counted where every operation shows itself
    step = our_synthesis_step(eager)
    step()
    with FlopCounterMode(display=False, custom_mapping=_worth()) as flops:
        step()
    with _Traffic() as traffic:
        step()
    with FlopCounterMode(display=False) as their_flops:
        theirs()
    ceiling = limit[f"{str(bench.precision).removeprefix('torch.')}_gflops"]
    least = flops.get_total_flops() / ceiling / 1e6
    return times | {
        "speedup": times["peers"]["ms"] / times["ours"]["ms"],
        "gmac": flops.get_total_flops() / 2e9,
        "peers_gmac": their_flops.get_total_flops() / 2e9,
        "gigabytes": traffic.bytes / 1e9,
        "least_ms_by_matrix_rate": least,
        "least_ms_by_copy_rate": traffic.bytes / limit["copy_gb_per_s"] / 1e6,
        "share_of_limit": least / times["ours"]["ms"],
    }


def distillation_times(bench: Bench) -> dict[str, Any]:
    """A student step with its share of the bank (V views of every image, asked once), over all
    steps of the run.
    """
    run, device = bench.run, bench.device
    teacher, student = bench.classifiers(tuned=True)
    spec = teacher.spec
    pool = torch.randint(
        0, 256, (run.images, spec.channels, spec.size, spec.size), dtype=torch.uint8, device=device
    )
    state = StudentState(student.train(), device, 0)
    train, answers = (
        StudentStep(state, 4.0, bench.precision, bench.step),
        torch.randn(run.batch, spec.classes, device=device),
    )
    even, frozen = torch.ones(run.batch, device=device), Frozen(teacher, bench.precision)

    def step() -> None:
        state.optimiser.set_share(1.0)
        drawn = torch.randint(run.images * run.views, (run.batch,), device=device)
        train(
            make_views(pool, drawn // run.views, drawn % run.views, PHOTOGRAPHS, 0), answers, even
        )

    def question() -> None:
        index = torch.arange(min(CHUNK, run.images), device=device)
        ask(
            frozen,
            make_views(pool, index, torch.zeros_like(index), PHOTOGRAPHS, 0),
            bench.precision,
        )

    their_teacher, their_student = bench.classifiers(tuned=False)
    images = torch.rand(run.batch, spec.channels, spec.size, spec.size, device=device)
    theirs = _freely(bench, peers.distillation_step(their_teacher, their_student, images, 4.0))
    times = bench.compare(ours=step, bank_chunk=question, peers=theirs)
    steps = run.epochs * (run.images // run.batch)
    share = times["bank_chunk"]["ms"] * (run.images * run.views / min(CHUNK, run.images)) / steps
    whole = times["ours"]["ms"] + share
    return times | {
        "views": run.views,
        "steps": steps,
        "bank_share_ms": share,
        "whole_ms": whole,
        "speedup": times["peers"]["ms"] / whole,
    }


def memory(bench: Bench) -> dict[str, float]:
    """Peak memory of a synthesis step on each side, in MiB: the device's own count, or a fresh
    process's resident set.
    """
    found = {}
    for side in ("ours", "peers"):
        if bench.device.type == "cuda":
            found[side] = _peak(bench.run, side, asked_form())
        else:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                found[side] = fresh.submit(_peak, bench.run, side, asked_form()).result()
    return {
        "memory_mib": found["ours"],
        "peers_memory_mib": found["peers"],
        "memory_ratio": found["ours"] / found["peers"],
    }


def _peak(run: BenchRun, side: str, form: str) -> float:
    with kernel_form(form):
        bench = Bench(run)
        if bench.step == "graph":
            bench.step = "eager"  # what a captured step keeps for itself is in no count
        step = our_synthesis_step(bench) if side == "ours" else their_synthesis_step(bench)
        for _ in range(2):
            step()
        if bench.device.type == "cuda":
            free_cycles(bench.device)  # steps measured before
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            step()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() / 2**20
        _reset_peak()
        step()
        return _resident_peak()


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # what came before, compiling included, is not the step's


def _resident_peak() -> float:
    try:
        line = next(
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if platform.system() == "Darwin" else peak / 1024


def _worth() -> dict[Any, Callable[..., int]]:
    """What convolutions are worth: Winograd's forms do 4/9 of it, or a quarter, so the share of the
    limit can pass one.
    """
    ours = torch.ops.echoset
    last = {
        ours.conv3x3: 2,
        ours.conv3x3_float32: 3,
        ours.conv3x3_weight_float32: 3,
    }  # where the second tensor has its outputs
    return {
        operation: lambda x, other, *_, place=place, **__: 2 * 9 * math.prod(x) * other[place]
        for operation, place in last.items()
    }


class _Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple = (), keywords: dict | None = None
    ) -> Any:
        out = function(*arguments, **(keywords or {}))
        read = {
            t.data_ptr(): t.nbytes
            for t in tree_leaves((arguments, keywords))
            if isinstance(t, Tensor)
        }
        written = {t.data_ptr(): t.nbytes for t in tree_leaves(out) if isinstance(t, Tensor)}
        if not (written.keys() <= read.keys() and not function._schema.is_mutable):
            self.bytes += sum(read.values()) + sum(written.values())
        return out


def _read(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise EchosetError(
            f"--against {path}: not a result of echoset bench --save ({error})"
        ) from error
    figures = (
        [found[name] for name in HEADLINES if name in found] if isinstance(found, dict) else []
    )
    if not figures or not all(isinstance(figure, float) for figure in figures):
        raise EchosetError(
            f"--against {path} holds no figure of echoset bench; give a file that --save wrote"
        )
    return found
