"""The student loop: a student learns a set from its teacher's answers."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.data.images import Images, content_hash
from distill.files import load_state, save_state
from distill.learner import Learner
from distill.lessons import Lessons, check_lesson
from distill.loop import Interrupted, Loop
from distill.models import Classifier, as_found, build_classifier, read_spec
from distill.models.classifier import spec_of
from distill.models.weights import load_weights, read_weights
from distill.optimisers import make_optimiser
from distill.options import DistillOptions, StudentOptions
from distill.runtime import Runtime, Step
from distill.sets.transfer_set import TransferSet
from distill.tasks.places import decide
from distill.views import ask, to_input
from synthesis_kernels.backend import (
    describe_forms,
    free_cycles,
    random_apart,
)
from synthesis_kernels.divergence import divergence, same_decision
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.step import Captured, compiled, optimiser_tensors

STATE = "student.state"


def forget(folder: Path) -> None:
    """Delete what a distillation keeps in its folder until its student is saved."""
    for path in [folder / STATE, *folder.glob("answers-*.state")]:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class DistillResult:
    """What a distillation leaves behind."""

    student: Classifier
    seconds: float
    agreement: float
    """Share of the latest views on which student and teacher (or label) chose the same class,
    before each update.
    """
    held_out_agreement: float | None = None
    """The same on images of the set that were kept apart, where there was patience: of the student
    that is returned.
    """
    steps: int = 0
    """Updates made; fewer than asked for where patience ran out."""


class StudentState:
    """Everything a student's training consists of; saving a run is saving this.

    Dropout inside a student can only draw from torch's global generator, so its state is saved too;
    whoever runs the loop forks and seeds it.
    """

    def __init__(
        self,
        student: Classifier,
        device: torch.device,
        seed: int,
        options: DistillOptions = DistillOptions(),
        trained: nn.Module | None = None,
    ) -> None:
        self.student = student.to(device, memory_format=torch.channels_last)
        # What is optimised: the student, or a learner that holds it.
        self.trained = (
            student if trained is None else trained.to(device, memory_format=torch.channels_last)
        )
        self.optimiser = make_optimiser(
            self.trained, options.optimiser, options.learning_rate, options.weight_decay
        )
        self.generator = torch.Generator(device).manual_seed(seed)
        self.agreement = torch.zeros(
            (), device=device
        )  # moving average; read only when it is shown
        self.average = copy.deepcopy(student).requires_grad_(False) if options.ema else None
        self.best: dict[
            str, Tensor
        ] = {}  # weights of the student that agreed most on held-out images
        self.best_agreement = -1.0
        self.checks_since_best = 0
        self.step = 0
        self.seconds = 0.0

    def tensors(self) -> list[Tensor]:
        """Every tensor a step changes in place."""
        return [*optimiser_tensors(self.optimiser), *self.trained.buffers()]

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the running average towards the student; a young average moves faster."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for mine, new in zip(
            self.average.state_dict().values(), self.student.state_dict().values(), strict=True
        ):
            mine.lerp_(new, 1 - decay) if mine.is_floating_point() else mine.copy_(new)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, counters and random state."""
        return {
            "trained": self.trained.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "agreement": self.agreement,
            "average": self.average.state_dict() if self.average else {},
            "best": self.best,
            "best_agreement": self.best_agreement,
            "checks_since_best": self.checks_since_best,
            "step": self.step,
            "seconds": self.seconds,
            "dropout": torch.get_rng_state(),
            "cuda_dropout": torch.cuda.get_rng_state(self.agreement.device)
            if self.agreement.is_cuda
            else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.trained.load_state_dict(state["trained"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"].cpu())
        self.agreement.copy_(state["agreement"])
        if self.average:
            self.average.load_state_dict(state["average"])
        for name in ("best", "best_agreement", "checks_since_best", "step", "seconds"):
            setattr(self, name, state[name])
        torch.set_rng_state(state["dropout"])
        if self.agreement.is_cuda:
            torch.cuda.set_rng_state(state["cuda_dropout"], self.agreement.device)


def one_cycle(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: a linear rise over the warm-up, then half a cosine down to
    zero.
    """
    position = min((step + 0.5) / steps, 1.0)
    if position < warmup:
        return position / warmup
    return 0.5 * (1 + math.cos(math.pi * (position - warmup) / (1 - warmup)))


class Update:
    """One update by whatever `lesson(*inputs)` gives as (loss, *outputs), eager or captured; a call
    gives the outputs.
    """

    def __init__(
        self, state: StudentState, lesson: Callable[..., tuple[Tensor, ...]], step: Step = "eager"
    ) -> None:
        self.state, self.lesson = state, lesson
        self._run = Captured(self._update, state.tensors) if step == "graph" else self._update

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.state.step += 1
        return self._run(*inputs)

    def _update(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.state.optimiser.zero_grad(set_to_none=True)
        loss, *outputs = self.lesson(*inputs)
        loss.backward()
        self.state.optimiser.step()
        return tuple(output.detach() for output in outputs)


class StudentStep:
    """One update on images that count differently: the step of the adversarial student.

    It is an ordinary learner's, on answers that are known. Without a `learner` there is one by
    hinton alone.
    """

    def __init__(
        self,
        state: StudentState,
        temperature: float,
        precision: torch.dtype,
        step: Step = "eager",
        learner: Learner | None = None,
    ) -> None:
        options = DistillOptions(temperature=temperature)
        self.learner = learner or Learner(state.student, None, options, precision, answered=True)
        if step == "compiled":
            self.learner.network = compiled(state.student)
        device = state.agreement.device
        self._nothing = torch.empty(0, device=device)
        self._share = torch.zeros((), device=device)
        self._update = Update(state, self._lesson, step)

    def __call__(
        self,
        images: Tensor,  # (B, C, H, W) in [0, 1], as the student shall see them
        teacher_logits: Tensor,  # (B, K) for these very views
        weights: Tensor,  # (B,)
        *hints: Tensor,  # (B, C, h, w) as the learner gives them
    ) -> Tensor:  # (B, K) the student's logits before the update
        return self._update(images, teacher_logits, weights, *hints)[0]

    def _lesson(
        self, images: Tensor, teacher_logits: Tensor, weights: Tensor, *hints: Tensor
    ) -> tuple[Tensor, Tensor]:
        nothing = self._nothing
        loss, logits, _ = self.learner(
            images, teacher_logits, nothing, self._share, nothing, *hints, importance=weights
        )
        return loss, logits


def build_student(options: StudentOptions, like: dict[str, Any], seed: int = 0) -> Classifier:
    """A student for a set, fresh unless the options name weights. `like` is the `input` entry of
    its manifest: channels, size, classes, mean, std.
    """
    spec = spec_of(like, options.model, options.arguments)
    student = build_classifier(spec, seed)
    if options.weights:
        load_weights(student.network, read_weights(options.weights), options.weights)
        theirs = read_spec(options.weights) if options.weights.endswith(".safetensors") else None
        if theirs and (theirs.mean, theirs.std) != (spec.mean, spec.std):
            raise EchosetError(
                f"{options.weights} was trained with mean {theirs.mean} and std {theirs.std}, and "
                "here the teacher's count: "
                f"{spec.mean} and {spec.std}"
            )
    student.check_forward()
    _check_training(student)
    return student


def _check_training(student: Classifier) -> None:
    """Some networks answer otherwise while they are trained: with the logits of auxiliary heads,
    say.
    """
    if type(student.network).__module__.startswith("distill."):
        return
    spec = student.spec
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        found = copy.deepcopy(student).train()(
            torch.full((2, spec.channels, spec.size, spec.size), 0.5, device=student.mean.device)
        )
    if not isinstance(found, Tensor):
        raise EchosetError(
            f"{spec.model} answers with {type(found).__name__} while it is trained, and not with "
            "logits alone; of torchvision's, "
            "give it the argument aux_logits=false"
        )


def identify_student(options: StudentOptions) -> dict[str, Any]:
    """The options with the content of the weights' file in place of its name: what a result belongs
    to.
    """
    weights = options.weights
    if weights:
        if not Path(weights).is_file():
            raise EchosetError(f"no weights file at {weights}")
        weights = sha256(Path(weights).read_bytes()).hexdigest()
    return {**asdict(options), "weights": weights}


def distill(
    student: Classifier,
    data: TransferSet | Images,
    teacher: Classifier | None,
    options: DistillOptions = DistillOptions(),
    folder: str | Path | None = None,
    runtime: Runtime = Runtime(),
) -> DistillResult:
    """Train `student` on views of the images, each labelled by the teacher (or, if the options say
    so, by the data).

    The images may be a transfer set or any others; they are resized, and made grey or coloured, as
    the student takes them. A teacher may be missing where no loss asks one. The student is trained
    in place and returned in evaluation mode. With a `folder`, a killed or interrupted run goes on
    where it was when it is called again with the same arguments, and `log.jsonl` there records it;
    stopped, it leaves the student with the weights that it came with. The last state stays for the
    caller to `forget` once the student is saved.
    """
    check_lesson(student, data, teacher, options)
    seed = runtime.seed
    quiet = runtime.quiet
    machine = runtime.resolve(options.steps)
    device = machine.device
    step = machine.step
    free_cycles(device)
    with (
        random_apart(seed, device),
        as_found(teacher),
        _as_it_was_if_it_fails(student, folder is not None),
    ):
        runtime.say(describe_forms(device))
        if teacher is not None:
            teacher = (
                teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
            )
        learner = Learner(student.to(device), teacher, options, machine.precision, seed)
        learner.check_step(step)
        state = StudentState(student, device, seed, options, learner)
        learner.train()
        train = Update(state, learner, step)
        if step == "compiled":
            learner.network = compiled(student)

        folder = Path(folder) if folder is not None else None
        key = _job_key(student, data, teacher, options, seed, machine.key) if folder else ""
        saved = load_state(folder / STATE, key) if folder else None
        if saved is not None:
            state.load_state_dict(saved)

        def save(seconds: float) -> Path:
            state.seconds = seconds
            save_state(folder / STATE, key, state.state_dict())
            return folder / STATE

        lessons = Lessons(data, learner, teacher, seed, device)
        judge = _Judge(lessons, teacher, machine.precision) if options.patience else None
        loop = Loop(
            "distilling",
            options.steps,
            quiet,
            state.step,
            save=save if folder else None,
            log=folder / "log.jsonl" if folder else None,
            seconds=state.seconds,
            work="distillation",
        )
        if state.step < options.steps:
            lessons.ask_beforehand(quiet, folder)
        with loop:
            while state.step < options.steps and not _patience_is_over(state, options):
                if learner.attacks and state.step / options.steps >= learner.attacks_end:
                    learner.attacks = False
                    train = Update(state, learner, step)  # another step, to be captured anew
                state.optimiser.set_share(one_cycle(state.step, options.steps, options.warmup))
                logits, answers = train(*lessons.draw(state.step, state.generator))
                if options.ema:
                    state.follow(options.ema)
                agreement = same_decision(answers, logits).float().mean()
                state.agreement.lerp_(agreement, max(0.02, 1 / state.step))
                figures_line = None
                last = state.step == options.steps
                if state.step % CHECK == 0 or last:
                    figures = _look(state, logits, answers, judge)
                    _record(loop, figures, state, folder)
                    figures_line = _in_words(figures)
                loop.advance(state.step, figures_line, keep=last)
        if judge:
            student.load_state_dict(state.best)
        elif state.average:
            student.load_state_dict(state.average.state_dict())
        student.eval()
        best = state.best_agreement if judge else None
        return DistillResult(student, loop.seconds, state.agreement.item(), best, state.step)


@contextmanager
def _as_it_was_if_it_fails(student: Classifier, kept: bool) -> Iterator[None]:
    """A student that failed gets the weights back that it came with. So does a stopped one whose
    state is `kept`: by its weights the same call, made again, finds what was saved. Otherwise a
    stopped student is all there is, and stays as it is.
    """
    weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    try:
        yield
    except (EchosetError, Interrupted, KeyboardInterrupt) as error:
        if kept or isinstance(error, EchosetError):
            student.load_state_dict(weights)
        raise


CHECK = 50
"""Steps between two looks at the figures, and at held-out images."""


class _Judge:
    """Agreement of the student, as it would be kept, with the teacher (or the labels) on held-out
    images as they are.
    """

    def __init__(
        self, lessons: Lessons, teacher: Classifier | None, precision: torch.dtype
    ) -> None:
        self.pool, self.precision = lessons.held_out, precision
        labels = lessons.held_out_labels
        self.wanted = labels if labels is not None else self._decide(teacher)

    def _decide(self, network: Classifier) -> Tensor:
        return torch.cat(
            [decide(ask(network, to_input(part), self.precision)) for part in self.pool.split(500)]
        )

    def look(self, state: StudentState) -> float:
        """Measure, and remember the student if it is the best so far."""
        student = state.average or state.student
        training = student.training
        agreement = (self._decide(student.eval()) == self.wanted).float().mean().item()
        student.train(training)
        state.checks_since_best += 1
        if agreement > state.best_agreement:
            state.best_agreement, state.checks_since_best = agreement, 0
            state.best = {
                name: tensor.detach().clone() for name, tensor in student.state_dict().items()
            }
        return agreement


def _look(
    state: StudentState, logits: Tensor, answers: Tensor, judge: _Judge | None
) -> dict[str, float]:
    """The figures of the latest update."""
    figures = {
        "agreement": state.agreement.item(),
        "loss": divergence(answers, logits).mean().item(),
    }
    if judge:
        figures["held_out_agreement"] = judge.look(state)
    return figures


def _record(
    loop: Loop, figures: dict[str, float], state: StudentState, folder: Path | None
) -> None:
    """Log the figures; of a student that is no longer finite, keep no state to go on from."""
    remedy = "lower the learning rate of the distillation, or the weights of its losses"
    try:
        loop.record("distill", figures, remedy, f"step {state.step}", step=state.step)
    except EchosetError:
        if folder:
            (folder / STATE).unlink(missing_ok=True)
        raise


def _in_words(figures: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())


def _patience_is_over(state: StudentState, options: DistillOptions) -> bool:
    return bool(options.patience) and state.checks_since_best >= options.patience


def _job_key(
    student: Classifier,
    data: TransferSet | Images,
    teacher: Classifier | None,
    options: DistillOptions,
    seed: int,
    where: str,
) -> str:
    """What the saved state belongs to: a run with anything else changed must not pick it up."""
    networks = [network for network in (student, teacher) if network is not None]
    known = [
        (each.weight_hash(), each.contract, each.spec.model, each.spec.arguments)
        for each in networks
    ]
    parts = [known, content_hash(data.images, data.labels), asdict(options), seed, where]
    return sha256(json.dumps(parts, default=str).encode()).hexdigest()
