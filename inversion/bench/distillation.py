"""What is timed: one step of the distillation, and the views of images that it learns from."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.data.augment import make_views
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.options import ViewOptions
from distill.replaying import may_replay
from distill.update import StudentState
from distill.views import CHUNK, ask
from inversion.bench import peers
from inversion.bench.limits import count
from inversion.bench.replays import Work
from inversion.bench.timing import Bench, milliseconds, ratio
from inversion.parts.student_step import StudentStep
from synthesis_kernels.choices import Way

PHOTOGRAPHS = ViewOptions(rotate=0, scale=0, shift=0.125, flip=True)
TEMPERATURE = 4.0
BATCHES = 20
"""Of the peers' pool, timed together: workers read ahead, so that one batch tells nothing."""


def pool_times(bench: Bench) -> dict[str, Any]:
    """A batch of cropped, flipped, normalised views: from a uint8 pool on the device, and from PNG
    files by worker processes.

    The workers read ahead and would take our time: they are timed first, and not in turns.
    """
    run = bench.run
    count = min(run.images, 10 * run.batch)
    pool = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    seconds = peers_pool_seconds(bench, pool)
    times = bench.compare(ours=our_pool(bench, pool.to(bench.device)))
    times["peers"] = milliseconds(seconds)
    return times | {"speedup": ratio(times, "peers")}


def our_pool(bench: Bench, pool: Tensor) -> Work:
    """A batch of normalised views, each time other ones."""
    device = bench.device
    mean = torch.full((1, 3, 1, 1), 0.5, device=device)
    std = torch.full((1, 3, 1, 1), 0.25, device=device)
    steps = iter(range(10**9))

    def batch() -> Tensor:
        index = torch.randint(len(pool), (bench.run.batch,), device=device)
        view = torch.full_like(index, next(steps))
        return (make_views(pool, index, view, PHOTOGRAPHS, 0) - mean) / std

    return batch


def peers_pool_seconds(bench: Bench, pool: Tensor) -> list[float]:
    """Seconds a batch from PNG files, at every repeat."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        data = peers.PngFolder(Path(folder), pool, (0.5,) * 3, (0.25,) * 3)
        batches = peers.png_batches(data, bench.run.batch)
        # Only a whole pass, more than the workers hold ready, tells what a batch costs.
        for _ in range(2 + peers.WORKERS * 2):
            next(batches)
        for _ in range(bench.run.repeats):
            began = time.perf_counter()
            for _ in range(BATCHES):
                next(batches).to(bench.device)
            seconds.append((time.perf_counter() - began) / BATCHES)
        batches.close()
    return seconds


def distillation_times(bench: Bench) -> dict[str, Any]:
    """A student step with its share of the bank (V views of every image, asked once), over all
    steps of the run.
    """
    run = bench.run
    teacher, student = bench.classifiers(tuned=True)
    spec = teacher.spec
    shape = (run.images, *spec.shape)
    pool = torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device)
    times = bench.compare(
        ours=our_step(bench, student, pool),
        bank_chunk=bank_chunk(bench, teacher, pool),
        peers=peers_step(bench),
    )
    steps = run.epochs * (run.images // run.batch)
    chunks = run.images * run.views / min(CHUNK, run.images)
    share = times["bank_chunk"]["ms"] * chunks / steps
    whole = times["ours"]["ms"] + share
    _, fresh = bench.classifiers(tuned=True)
    counts = count(our_step(bench.eagerly(), fresh, pool))
    return (
        times
        | counts
        | {
            "views": run.views,
            "steps": steps,
            "bank_share_ms": share,
            "whole_ms": whole,
            "speedup": times["peers"]["ms"] / whole,
        }
    )


def our_step(bench: Bench, student: Classifier, pool: Tensor) -> Work:
    """Views of a batch, and an update by answers that are in the bank."""
    run = bench.run
    device = bench.device
    state = StudentState(student.train(), device, 0)
    way: Way = "replay" if may_replay(run.step, device, student) else bench.step
    train = StudentStep(state, TEMPERATURE, bench.precision, way)
    answers = torch.randn(run.batch, student.spec.classes, device=device)  # (B, K)
    weights = torch.ones(run.batch, device=device)  # (B,)

    def step() -> None:
        state.optimiser.set_share(1.0)
        drawn = torch.randint(run.images * run.views, (run.batch,), device=device)
        images = make_views(pool, drawn // run.views, drawn % run.views, PHOTOGRAPHS, 0)
        train(images, answers, weights)

    return step


def bank_chunk(bench: Bench, teacher: Classifier, pool: Tensor) -> Work:
    """The teacher's answers to a view of each image of a chunk."""
    frozen = Frozen(teacher, bench.precision)

    def question() -> None:
        index = torch.arange(min(CHUNK, len(pool)), device=bench.device)
        images = make_views(pool, index, torch.zeros_like(index), PHOTOGRAPHS, 0)
        ask(frozen, images, bench.precision)

    return question


def peers_step(bench: Bench) -> Work:
    """The same networks in the peers' formulation, on a batch that is there already."""
    teacher, student = bench.classifiers(tuned=False)
    spec = teacher.spec
    images = torch.rand(bench.run.batch, *spec.shape, device=bench.device)
    step = peers.distillation_step(teacher, student, images, TEMPERATURE)
    return peers.freely(step, bench.device)
