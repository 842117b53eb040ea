"""What is timed: one inner step of the synthesis, and the memory that it takes."""

from __future__ import annotations

import contextlib
import platform
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.models.frozen import Frozen
from inversion.bench import peers
from inversion.bench.limits import count
from inversion.bench.replays import Work
from inversion.bench.timing import Bench, precision_name, ratio
from inversion.parts.inner import InnerLoop
from synthesis_kernels.backend import asked_form, free_cycles, kernel_form
from synthesis_kernels.choices import Form

if TYPE_CHECKING:
    from inversion.cli.schema import BenchRun


def our_step(bench: Bench) -> Work:
    """One inner step, adversary and average in it, as the loop runs it."""
    batch = bench.run.batch
    device = bench.device
    teacher, student = bench.classifiers(tuned=True)
    classes = teacher.spec.classes
    inner = InnerLoop(
        teacher=Frozen(teacher.requires_grad_(False), bench.precision),
        generator=bench.generator(teacher),
        adversary=student.eval(),
        options=bench.options,
        capacity=5000,
        precision=bench.precision,
        seed=0,
        step=bench.step,
    )
    noise = torch.randn(batch, bench.options.generator.latent, device=device)
    average = (inner.target.mean.clone(), inner.target.variance.clone())
    wanted = torch.arange(batch, device=device) % classes  # (B,)
    view = torch.zeros((), dtype=torch.int64, device=device)
    held = torch.ones(classes, device=device)  # (K,)
    inner.begin(noise, average)
    # Of one label an image, the class is the whole target.
    return lambda: inner.run(wanted, wanted, view, held, adversarial=True)


def peers_step(bench: Bench) -> Work:
    """The same network sizes in the peers' formulation."""
    teacher, student = bench.classifiers(tuned=False)
    size = bench.options.generator
    generator = peers.PlainGenerator(teacher.spec, size.latent, size.width).to(bench.device)
    step = peers.synthesis_step(
        teacher, student, generator, bench.run.batch, bench.options.objective.bn
    )
    return peers.freely(step, bench.device)


def synthesis_times(bench: Bench, limit: dict[str, float]) -> dict[str, Any]:
    """The whole inner step: generator, teacher with BN loss, student, backward, update. And how
    near the limit it is.
    """
    theirs = peers_step(bench)
    times = bench.compare(ours=our_step(bench), peers=theirs)
    counts = count(our_step(bench.eagerly()))
    with FlopCounterMode(display=False) as peers_flops:
        theirs()
    least = 2e3 * counts["gmac"] / limit[f"{precision_name(bench.precision)}_gflops"]
    return (
        times
        | counts
        | {
            "speedup": ratio(times, "peers"),
            "peers_gmac": peers_flops.get_total_flops() / 2e9,
            "least_ms_by_matrix_rate": least,
            "least_ms_by_copy_rate": 1e3 * counts["gigabytes"] / limit["copy_gb_per_s"],
            "share_of_limit": least / times["ours"]["ms"],
        }
    )


def step_memory(bench: Bench) -> dict[str, float]:
    """Peak memory of a synthesis step on each side, in MiB: the device's own count, or a fresh
    process's resident set.
    """
    peaks = {}
    for side in ("ours", "peers"):
        if bench.device.type == "cuda":
            peaks[side] = peak_memory(bench.run, side, asked_form())
        else:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                peaks[side] = fresh.submit(peak_memory, bench.run, side, asked_form()).result()
    return {
        "memory_mib": peaks["ours"],
        "peers_memory_mib": peaks["peers"],
        "memory_ratio": peaks["ours"] / peaks["peers"],
    }


def peak_memory(run: BenchRun, side: str, form: Form) -> float:
    """Peak memory of one side's step, in MiB."""
    with kernel_form(form):
        bench = Bench(run)
        if bench.step != "eager":
            # What a captured step keeps for itself is in no count.
            bench = bench.eagerly()
        step = our_step(bench) if side == "ours" else peers_step(bench)
        for _ in range(2):
            step()
        if bench.device.type == "cuda":
            return _device_peak(step, bench.device)
        _reset_resident_peak()
        step()
        return _resident_peak()


def _device_peak(step: Work, device: torch.device) -> float:
    # Of steps measured before.
    free_cycles(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def _reset_resident_peak() -> None:
    """Forget what came before: compiling, too, is no part of the step."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident_peak() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if platform.system() == "Darwin" else peak / 1024
