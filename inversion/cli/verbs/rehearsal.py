"""What a set and a student will take, from a few real steps on a small part of a batch.

Nothing is kept of them, and no random numbers but their own are drawn.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from distill.data.images import Images
from distill.models import Classifier, as_found
from distill.models.classifier import on_device
from distill.models.frozen import Frozen
from distill.options import DistillOptions, StudentOptions
from distill.outlook import Part, describe, memory_taken
from distill.runtime import Machine, Runtime
from distill.students import build_student
from distill.train import distill
from inversion.jobs import plan
from inversion.options import SynthesisOptions
from inversion.parts.own import Own
from inversion.recipes import find_recipe
from inversion.shards import Shard
from synthesis_kernels.backend import random_apart

SHARE = 4
"""A call is rehearsed with one in so many of its images: two such calls take about a hundredth of a
synthesis.
"""
FEW = 8
"""Images of a pass forward that is timed."""


@dataclass(frozen=True)
class Rehearsal:
    """What was found."""

    parts: list[Part]
    memory: float | None
    """Bytes, about."""

    @property
    def line(self) -> str:
        """The same in words."""
        return describe(self.parts, self.memory)


def rehearse(
    teacher: Classifier,
    synthesis: SynthesisOptions,
    student: StudentOptions,
    distillation: DistillOptions,
    runtime: Runtime,
) -> Rehearsal:
    """Calls of the synthesis and steps of a student, each with its seconds."""
    machine = replace(runtime.resolve(), step="eager")
    with as_found(teacher), random_apart(runtime.seed, machine.device):
        teacher = on_device(teacher, machine.device).eval().requires_grad_(False)
        frozen = Frozen(teacher, machine.precision)
        each = _time_pass(frozen, _pictures(teacher, FEW, machine.device)) / FEW
        calls = synthesis.calls * len(plan(synthesis, teacher.spec.classes))
        parts = [Part(calls, "call", _time_call(teacher, synthesis, machine))]
        if distillation.steps:
            count = synthesis.images
            parts += _rehearse_student(teacher, count, each, student, distillation, runtime)
        return Rehearsal(parts, _expect_memory(frozen, synthesis, teacher, machine.device))


def _rehearse_student(
    teacher: Classifier,
    images: int,
    seconds: float,
    student: StudentOptions,
    options: DistillOptions,
    runtime: Runtime,
) -> list[Part]:
    """The teacher's answers to views of the images, where it gives them beforehand at so many
    seconds each, and the student's steps.
    """
    views = images * options.views_per_image
    if 0 < views <= options.steps * options.batch:
        step = _time_step(teacher, student, replace(options, views_per_image=1), runtime)
        return [Part(views, "answer", seconds), Part(options.steps, "step", step)]
    step = _time_step(teacher, student, replace(options, views_per_image=0), runtime)
    return [Part(options.steps, "step", step)]


def _pictures(teacher: Classifier, count: int, device: torch.device) -> Tensor:  # (B, C, H, W)
    spec = teacher.spec
    numbers = torch.Generator(device).manual_seed(0)
    return torch.rand(count, *spec.shape, generator=numbers, device=device)


def _time_pass(frozen: Frozen, images: Tensor) -> float:
    """Seconds of a pass forward; the first one prepares much."""
    spent = []
    with torch.no_grad():
        for _ in range(3):
            began = time.perf_counter()
            frozen(images).sum().item()
            spent.append(time.perf_counter() - began)
    return min(spent)


def _time_call(teacher: Classifier, options: SynthesisOptions, machine: Machine) -> float:
    """Seconds of a call, from one with a part of the images, and the adversary in it from the first
    call on.
    """
    batch = max(2, options.batch // SHARE)
    shown = max(2, options.adversary.batch // SHARE)
    small = replace(
        options,
        batch=batch,
        images=max(batch, 2 * teacher.spec.classes),
        objective=replace(options.objective, adversary_after=0),
        adversary=replace(options.adversary, begins=0, batch=shown),
    )
    recipe = find_recipe(options.recipe)
    job = plan(small, teacher.spec.classes)[0]
    shard = Shard(recipe, teacher, recipe.settle(small, teacher), machine, Path(), Own(), job)
    spent = []
    for _ in range(2):
        began = time.perf_counter()
        shard.step()
        spent.append(time.perf_counter() - began)
    return min(spent) * options.batch / batch


def _time_step(
    teacher: Classifier, options: StudentOptions, distillation: DistillOptions, runtime: Runtime
) -> float:
    """Seconds of a student's step, by the difference of two runs."""
    device = runtime.resolve_device()
    pixels = _pictures(teacher, distillation.batch, device).mul(255).to(torch.uint8).cpu()
    labels = torch.zeros(len(pixels), *teacher.answer_shape[1:], dtype=torch.int64)
    data = Images(pixels, labels, "rehearsal")
    spent = []
    for steps in (1, 3):
        student = build_student(options, teacher.contract)
        brief = replace(distillation, steps=steps, patience=0)
        spent.append(distill(student, data, teacher, brief, runtime=runtime.quietly()).seconds)
    return max(spent[1] - spent[0], 0.0) / 2


def _expect_memory(
    frozen: Frozen, options: SynthesisOptions, teacher: Classifier, device: torch.device
) -> float | None:
    """What is taken so far, with what a pass of a batch keeps for the way back, and the images."""
    taken = memory_taken(device)
    if taken is None:
        return None
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = _pictures(teacher, 2, device).requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        frozen(images).sum()
    weights = sum(parameter.nbytes for parameter in frozen.parameters())
    activations = max(sum(kept.values()) - weights, 0) / 2 * options.batch * options.abreast
    spec = teacher.spec
    stored = options.images * math.prod(spec.shape)
    return taken + activations + stored
