"""The body of recipes that need no BatchNorm: generator and student play against one another.

The generator looks for images on which teacher and student differ; the student learns to agree.

    L_S = mean |z_S − z_T|        L_G = −adversary · L_S + classes · CE(T(x), y)

In L_G it is log(1 + L_S) with `objective.adversary_log`, as DFAD has it for segmentation. The
second term asks for the classes the set still lacks, so that the finished set can be balanced. A
recipe may add others.

A call is `generator.inner_steps` rounds of `adversary.steps` student steps and one generator step.
Then one batch is offered to the buffer, which has a quota for each class. Generator and student
learn at `generator.learning_rate` and `adversary.learning_rate`, the latter along half a cosine.
Every batch has `batch` images. `generator.conditioning` 0 counts as 1, or no class could be asked
for. No part is played by `generator.learning`, `latent_rate` and `meta_rate`, the rest of
`objective`, `replay.sampling` and its exponents, `adversary.batch` and `temperature`, `views` and
`patience`.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.memory import Parts
from distill.models import Classifier, save_classifier
from distill.models.frozen import Frozen
from distill.optimisers import Adam
from distill.options import DistillOptions
from distill.runtime import Machine, Runtime
from distill.students import build_student
from distill.tasks.places import count_decisions, decide, per_image, share_hit
from distill.update import StudentState, Update, one_cycle
from distill.views import ask, to_input
from inversion.inspection import TeacherNeed
from inversion.jobs import ShardJob, adversary_file
from inversion.options import SynthesisOptions
from inversion.parts.adversary import build_adversary
from inversion.parts.buffer import ReplayBuffer
from inversion.parts.normalised import build_normalised
from inversion.parts.own import NOTHING, Own, ask_term
from inversion.parts.painting import Drawn, Painter
from inversion.parts.progress import StepResult, planned_calls, read_back, show_counts
from inversion.parts.shard import buffer_tensors
from inversion.parts.terms import class_loss
from synthesis_kernels.backend import forward_pass
from synthesis_kernels.divergence import divergence, same_decision
from synthesis_kernels.errors import EchosetError

SLOWEST = 0.05
"""Least share of the student's peak rate, so that it still follows in the last calls and in those
beyond the planned ones.
"""


class Contest:
    """One shard in the making by a generator and a student that learns from fresh batches (see
    `inversion.recipes.Recipe`).
    """

    needs: TeacherNeed = "answers alone"
    abreast = None
    together = False

    @classmethod
    def settle(cls, options: SynthesisOptions, teacher: Classifier) -> SynthesisOptions:
        """Nothing follows from the teacher."""
        return options

    @classmethod
    def check(cls, teacher: Classifier, options: SynthesisOptions, runtime: Runtime) -> None:
        """Refuse what only BatchNorm matching has."""
        if runtime.step == "graph":
            raise EchosetError(f"recipe {options.recipe} runs eager steps only, not 'graph'")
        for name in ("keep_all", "replace_all"):
            if getattr(options.replay, name):
                raise EchosetError(f"recipe {options.recipe} has no replay.{name}; leave it false")
        for name in ("hints", "begins", "views_per_image"):
            if getattr(options.adversary, name):
                raise EchosetError(f"recipe {options.recipe} has no adversary.{name}; leave it 0")
        build_student(options.adversary.student, teacher.contract)

    def __init__(
        self,
        teacher: Classifier,
        job: ShardJob,
        options: SynthesisOptions,
        machine: Machine,
        own: Own = NOTHING,
    ) -> None:
        self.teacher = teacher
        self.job = job
        self.options = options
        self.machine = machine
        self.frozen = Frozen(teacher, machine.precision)
        device = machine.device
        spec = teacher.spec
        self.terms = own.named_terms
        self.generator = build_normalised(teacher, options, job.seed, own).to(device)
        self.optimiser = Adam(
            self.generator.parameters(),
            options.generator.learning_rate,
            betas=(0.5, 0.999),
            fused=True,
        )
        student, _ = build_adversary(teacher, options, job.seed, own=own.adversary)
        learning = DistillOptions(learning_rate=options.adversary.learning_rate)
        self.adversary = StudentState(student, device, job.seed, learning)
        option = "synthesis.batch"
        self.update = Update(self.adversary, self._student_loss, batch_option=option)
        self.parts = Parts(option)
        shape = spec.shape
        self.buffer = ReplayBuffer(
            job.quotas,
            shape,
            options.held_out,
            device,
            task=teacher.task,
            places=teacher.answer_shape[1:],
        )
        self.random = torch.Generator(device).manual_seed(job.seed)
        self.painter = Painter(self.generator, teacher, options, self.random, machine.precision)
        self.raw_counts = torch.zeros(spec.classes, dtype=torch.int64, device=device)
        self.call = 0
        self.seconds = 0.0
        self.agreement = 0.0
        self.counts = self.buffer.counts().tolist()

    @property
    def full(self) -> bool:
        """Whether the buffer has no empty slot."""
        return sum(self.counts) == self.buffer.capacity

    @property
    def done(self) -> bool:
        """Out of calls; twice as many are made while a class is short."""
        return self.call >= self.planned

    @property
    def planned(self) -> int:
        """The calls asked for; twice as many where a class is still short after them."""
        return planned_calls(self.call, self.options.calls, self.full)

    def notice(self) -> str | None:
        """Nothing."""
        return None

    def step(self) -> StepResult:
        """One call."""
        began = time.perf_counter()
        options = self.options
        for _ in range(options.generator.inner_steps):
            for _ in range(options.adversary.steps):
                difference = self._student_step()
            generator_loss, own = self._generator_step()
        taken, hit = self._offer()
        self.call += 1
        figures = {
            "difference": difference,
            "generator": generator_loss,
            "taken": taken,
            "hit": hit,
            "held_out_agreement": self._held_out(),
            **own,
        }
        values, (counts,) = read_back(figures, self.buffer.counts())
        self.agreement = values["held_out_agreement"]
        self.counts = [round(count) for count in counts]
        elapsed = time.perf_counter() - began
        self.seconds += elapsed
        line = (
            f"{show_counts(self.counts, self.job.quotas)}  difference {values['difference']:.3f}  "
            f"agreement {self.agreement:.3f}"
        )
        return StepResult(values, self.counts, {"seconds": elapsed}, line)

    def _student_step(self) -> Tensor:  # ()
        options = self.options
        total = options.calls * options.generator.inner_steps * options.adversary.steps
        share = one_cycle(self.adversary.step, total, warmup=0.0)
        self.adversary.optimiser.set_share(max(share, SLOWEST))
        self.adversary.student.train()
        with torch.no_grad():
            images = self.painter.paint(self.painter.draw(self.buffer))
        (difference,) = self.update(images, ask(self.frozen, images, self.machine.precision))
        return difference

    def _student_loss(self, images: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        with forward_pass(images.device, self.machine.precision):
            logits = self.adversary.student(images)
        difference = (logits.float() - answers).abs().mean()
        return difference, difference

    def _generator_step(self) -> tuple[Tensor, dict[str, Tensor]]:  # (), () each
        """An update of the generator; its loss, and the terms beside the published ones."""
        drawn = self.painter.draw(self.buffer)
        attempt = partial(self.painter.follow, self._generator_loss, drawn)
        loss, own = self.parts.run(attempt, self.options.batch, self.random.device)
        self.optimiser.step()
        return loss, own

    def _generator_loss(self, drawn: Drawn) -> tuple[Tensor, dict[str, Tensor]]:  # (), () each
        """What the generator is to lower, and the terms beside the published ones."""
        _, targets, wanted = drawn
        images = self.painter.paint(drawn)
        answers, priors = self._ask_teacher(images, wanted)
        student = self.adversary.student.eval()
        with forward_pass(images.device, self.machine.precision):
            logits = student(images).float()
        apart = (logits - answers).abs().mean()
        if self.options.objective.adversary_log:
            apart = apart.log1p()
        loss = -self.options.objective.adversary * apart
        if self.options.objective.classes:
            loss = loss + self.options.objective.classes * class_loss(answers, targets).mean()
        own = {}
        for name, (term, weight) in self.terms.items():
            priors[name] = (ask_term(term, images, answers, wanted), weight)
        for name, (value, weight) in priors.items():
            loss = loss + weight * value
            own[name] = value.detach()
        return loss, own

    # (B, C, H, W) in [0, 1], (B,) -> (B, K, *places), of ()
    def _ask_teacher(
        self, images: Tensor, wanted: Tensor
    ) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        """The teacher's answers, and what else the images are asked for, each with its weight."""
        return self.frozen(images), {}

    @torch.no_grad()
    def _offer(self) -> tuple[Tensor, Tensor]:  # (), ()
        """Offer a batch to the buffer, those that student and teacher differ on first."""
        drawn = self.painter.draw(self.buffer)
        pixels = (self.painter.paint(drawn) * 255).round().to(torch.uint8)
        logits = ask(self.teacher, to_input(pixels), torch.float32)
        decisions = decide(logits)
        self.raw_counts += count_decisions(decisions, self.buffer.classes)
        student = self.adversary.student.eval()
        answers = ask(student, to_input(pixels), self.machine.precision)
        rank = per_image(divergence(logits, answers))
        replay = self.options.replay
        taken = self.buffer.add(pixels, logits, rank, self.call, replay.refresh, replay.half_life)
        return taken, share_hit(decisions, drawn[1])

    def _held_out(self) -> Tensor:  # ()
        """Agreement of teacher and student on the images held out."""
        slots = self.buffer.to_ask()
        student = self.adversary.student.eval()
        logits = ask(student, to_input(self.buffer.images[slots]), self.machine.precision)
        filled = self.buffer.filled[slots]
        agreed = per_image(same_decision(self.buffer.logits[slots], logits).float())
        return (agreed * filled).sum() / filled.sum().clamp_min(1)

    def shard(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The buffer's images, and what is noted of how they came about."""
        note = {
            "raw_counts": self.raw_counts.tolist(),
            "held_out_agreement": round(self.agreement, 4),
        }
        return buffer_tensors(self.buffer, self.teacher, self.job), note

    def leave(self, folder: Path) -> None:
        """The student, where it is to be kept."""
        if self.options.adversary.keep:
            save_classifier(self.adversary.student, adversary_file(folder, self.job.index))

    def state_dict(self) -> dict[str, Any]:
        """Modules, optimisers, buffer, counters and random states."""
        return {
            "generator": self.generator.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "adversary": self.adversary.state_dict(),
            "buffer": self.buffer.state_dict(),
            "random": self.random.get_state(),
            "raw_counts": self.raw_counts,
            "counters": (self.call, self.seconds, self.agreement),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for part in ("generator", "optimiser", "adversary", "buffer"):
            getattr(self, part).load_state_dict(state[part])
        self.random.set_state(state["random"].cpu())
        self.raw_counts.copy_(state["raw_counts"])
        self.call, self.seconds, self.agreement = state["counters"]
        self.counts = self.buffer.counts().tolist()
