"""The student loop: a fresh student learns a set from its teacher's answers."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.augment import make_views
from distill.files import JsonLines, load_state, save_state
from distill.loop import Every, Interrupted, StepProgress, StopFlag
from distill.losses.hinton import hinton_loss
from distill.models import Classifier, ModelSpec, build_classifier
from distill.optimisers import Muon
from distill.options import Device, DistillOptions, Precision, Step, StudentOptions
from distill.transfer_set import TransferSet
from distill.views import ask, bank_answers
from synthesis_kernels.backend import describe_forms, mixed_precision, resolve_device, resolve_precision, say_once
from synthesis_kernels.divergence import divergence, same_decision
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.step import Captured, compiled, optimiser_tensors, resolve_step


@dataclass(frozen=True)
class DistillResult:
    """What a distillation leaves behind."""

    student: Classifier
    seconds: float
    agreement: float
    """Share of the latest views on which student and teacher chose the same class, before each update."""


class StudentState:
    """Everything a student's training consists of; saving a run is saving this.

    Dropout inside a student can only draw from torch's global generator, so its state is saved too; whoever runs the loop
    forks and seeds it.
    """

    def __init__(self, student: Classifier, learning_rate: float, device: torch.device, seed: int) -> None:
        self.student = student.to(device, memory_format=torch.channels_last)
        self.optimiser = Muon(self.student, learning_rate)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.agreement = torch.zeros((), device=device)  # moving average; read only when it is shown
        self.step = 0
        self.seconds = 0.0

    def tensors(self) -> list[Tensor]:
        """Every tensor a step changes in place."""
        return [*optimiser_tensors(self.optimiser), *self.student.buffers()]

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, counters and random state."""
        return {
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "agreement": self.agreement,
            "step": self.step,
            "seconds": self.seconds,
            "dropout": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"].cpu())
        self.agreement.copy_(state["agreement"])
        self.step = state["step"]
        self.seconds = state["seconds"]
        torch.set_rng_state(state["dropout"])


def one_cycle(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: a linear rise over the warm-up, then half a cosine down to zero."""
    position = min((step + 0.5) / steps, 1.0)
    if position < warmup:
        return position / warmup
    return 0.5 * (1 + math.cos(math.pi * (position - warmup) / (1 - warmup)))


class StudentStep:
    """One update by weighted KL, eager, compiled or captured; `step(...)` gives the student's logits before the update."""

    def __init__(self, state: StudentState, temperature: float, precision: torch.dtype, step: Step = "eager") -> None:
        self.state, self.temperature, self.precision = state, temperature, precision
        self._network = compiled(state.student) if step == "compiled" else state.student
        self._run = Captured(self._update, state.tensors) if step == "graph" else self._update

    def __call__(
        self,
        images: Tensor,  # (B, C, H, W) in [0, 1], as the student shall see them
        teacher_logits: Tensor,  # (B, K) for these very views
        weights: Tensor,  # (B,)
    ) -> Tensor:  # (B, K)
        self.state.step += 1
        return self._run(images, teacher_logits, weights)[0]

    def _update(self, images: Tensor, teacher_logits: Tensor, weights: Tensor) -> tuple[Tensor]:
        optimiser = self.state.optimiser
        optimiser.zero_grad(set_to_none=True)
        with mixed_precision(images.device, self.precision):
            logits = self._network(images)
        logits = logits.float()
        hinton_loss(logits, teacher_logits, self.temperature, weights).backward()
        optimiser.step()
        return (logits.detach(),)


def build_student(options: StudentOptions, like: dict[str, Any], seed: int = 0) -> Classifier:
    """A fresh student for a set: `like` is the `input` entry of its manifest (channels, size, classes, mean, std)."""
    contract = {key: like[key] for key in ("channels", "size", "classes")}
    spec = ModelSpec(options.model, options.arguments, mean=tuple(like["mean"]), std=tuple(like["std"]), **contract)
    student = build_classifier(spec, seed)
    student.check_forward()
    return student


def distill(
    student: Classifier,
    transfer_set: TransferSet,
    teacher: Classifier,
    options: DistillOptions = DistillOptions(),
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    folder: str | Path | None = None,
    quiet: bool = False,
    step: Step = "auto",
) -> DistillResult:
    """Train `student` on views of the set, each labelled by the teacher.

    The student is trained in place and returned in evaluation mode. With a `folder`, a killed or interrupted run goes on
    where it was when it is called again with the same arguments, and `log.jsonl` there records it. The last state stays
    in `student.state` for the caller to delete once the student is saved.
    """
    _check(student, transfer_set, options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        where = resolve_device(device)
        kind = resolve_precision(where, precision)
        pool = transfer_set.images.to(where)
        way = resolve_step(step, where, options.steps)
        forms = describe_forms(where)
        if not quiet:
            say_once(forms)
        teacher = teacher.to(where, memory_format=torch.channels_last).eval().requires_grad_(False)
        state = StudentState(student, options.learning_rate, where, seed)
        student.train()

        folder = Path(folder) if folder is not None else None
        key = _job_key(student, transfer_set, teacher, options, seed, f"{where.type} {kind} {way} {forms}")
        saved = load_state(folder / "student.state", key) if folder else None
        if saved is not None:
            state.load_state_dict(saved)
        log = JsonLines(folder / "log.jsonl") if folder else None
        began, save_due = time.perf_counter(), Every(20)
        count, per_image = len(pool), options.views_per_image
        bank = None
        if per_image and state.step < options.steps:
            bank = bank_answers(teacher, pool, per_image, options.views, seed, kind, quiet).flatten(0, 1)
            if where.type == "cuda":
                teacher.cpu()  # it is not asked again, and its memory is wanted
        train, even = StudentStep(state, options.temperature, kind, way), torch.ones(options.batch, device=where)
        with StopFlag() as stop, StepProgress("distilling", options.steps, quiet, state.step) as progress:
            while state.step < options.steps:
                state.optimiser.set_share(one_cycle(state.step, options.steps, options.warmup))
                draws = count * max(per_image, 1)
                drawn = torch.randint(draws, (options.batch,), generator=state.generator, device=where)
                if bank is not None:
                    images = make_views(pool, drawn // per_image, drawn % per_image, options.views, seed)
                    answers = bank[drawn]
                else:  # a view nobody has seen yet, and a question of its own
                    view = state.step * options.batch + torch.arange(options.batch, device=where)
                    images = make_views(pool, drawn, view, options.views, seed)
                    answers = ask(teacher, images, kind)
                logits = train(images, answers, even)
                state.agreement.lerp_(same_decision(answers, logits).float().mean(), max(0.02, 1 / state.step))
                if state.step % 50 == 0 or state.step == options.steps:
                    agreement, loss = state.agreement.item(), divergence(answers, logits).mean().item()
                    if not math.isfinite(loss):
                        raise EchosetError(
                            f"the student's loss is {loss} at step {state.step}; lower the learning rate of the distillation"
                        )
                    progress.update(state.step, f"agreement {agreement:.3f}")
                    if log:
                        log.write("distill", step=state.step, agreement=agreement, loss=loss)
                if folder and (stop.raised or save_due() or state.step == options.steps):
                    state.seconds, began = state.seconds + time.perf_counter() - began, time.perf_counter()
                    save_state(folder / "student.state", key, state.state_dict())
                if stop.raised:
                    raise Interrupted("distillation stopped" + (f"; {folder / 'student.state'} keeps it" if folder else ""))
        student.eval()
        return DistillResult(student, state.seconds + time.perf_counter() - began, state.agreement.item())


def _job_key(
    student: Classifier,
    transfer_set: TransferSet,
    teacher: Classifier,
    options: DistillOptions,
    seed: int,
    where: str,
) -> str:
    """What the saved state belongs to: a run with anything else changed must not pick it up."""
    shards = [entry["sha256"] for entry in transfer_set.manifest["shards"]]
    parts = [student.weight_hash(), teacher.weight_hash(), student.contract, teacher.contract, shards, asdict(options), seed, where]
    return sha256(json.dumps(parts).encode()).hexdigest()


def _check(student: Classifier, transfer_set: TransferSet, options: DistillOptions) -> None:
    if options.temperature <= 0:
        raise EchosetError(f"temperature must be positive, got {options.temperature}")
    for name, least in {"steps": 1, "batch": 2, "views_per_image": 0}.items():
        if getattr(options, name) < least:
            raise EchosetError(f"{name} must be at least {least}, got {getattr(options, name)}")
    if not 0 <= options.warmup < 1:
        raise EchosetError(f"warmup must lie in [0, 1), got {options.warmup}")
    given, found = student.spec, transfer_set.manifest["input"]
    for name in ("channels", "size", "classes"):
        if getattr(given, name) != found[name]:
            raise EchosetError(f"the student takes {getattr(given, name)} {name}, the set has {found[name]}")
