"""The whole method on points in a plane: `python -m inversion.toy [--out toy.png] [--seed 0]`.

A teacher learns three spiral arms, and the points it learnt from are thrown away. A generator makes
new points, which the teacher finds familiar and an adversarial student finds hard. A small buffer,
balanced by class, keeps the best. At the end a fresh student learns from the buffer alone.
Read from top to bottom, this file explains SSD-KD (Small Scale Data-Free Knowledge Distillation,
CVPR 2024). `docs/toy.md` has the picture and the figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inversion.parts.terms import adversarial_loss, class_loss, phi
from synthesis_kernels.divergence import divergence
from synthesis_kernels.moment_target import moment_distance
from synthesis_kernels.priority import draw, draw_chances, importance_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES = 3
SHARE = 50  # points of each class in the set
SIZE = CLASSES * SHARE  # points in the set, and in every set it is compared with
REACH = 1.5  # a point's coordinates lie in [-REACH, REACH], as a pixel lies in [0, 1]
TEMPERATURE = 2.0
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # of the classes, told apart by the colour-blind
Loss = Callable[[Tensor, Tensor], Tensor]


def spirals(count: int) -> tuple[Tensor, Tensor]:  # (count, 2), (count,)
    """Real points: three interleaved spiral arms, one for each class."""
    labels = torch.arange(count) % CLASSES
    along = torch.rand(count).sqrt()
    angle = 2 * pi * (labels / CLASSES + 0.9 * along)
    points = torch.stack([angle.cos(), angle.sin()], 1) * (0.1 + 0.9 * along)[:, None]
    return points + 0.03 * torch.randn(count, 2), labels


def network(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers, each with BatchNorm."""
    first = [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
    second = [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.Linear(width, outputs))


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the loss."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def teaching_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:  # (B, K) -> (B,)
    """KL of teacher and student, both softened by the temperature."""
    return divergence(teacher_logits, student_logits, TEMPERATURE)


def train(
    learner: nn.Sequential, points: Tensor, answers: Tensor, loss: Loss, steps: int, batch: int
) -> nn.Sequential:
    """The last step's network, frozen."""
    optimiser = torch.optim.Adam(learner.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        drawn = torch.randint(len(points), (batch,))
        update(optimiser, loss(answers[drawn], learner(points[drawn])).mean())
        schedule.step()
    return learner.eval().requires_grad_(False)


def train_teacher() -> nn.Sequential:
    """A network that knows the spirals. Its training points never leave this function."""
    points, labels = spirals(3000)
    teacher = network(2, 128, CLASSES)
    return train(teacher, points, labels, lambda y, logits: class_loss(logits, y), 300, 256)


def ask(teacher: nn.Sequential, points: Tensor) -> tuple[Tensor, Tensor]:  # (B, K), ()
    """The teacher's answers, and L_BN: how far the batch's mean and variance at each BatchNorm are
    from those the layer kept of the real points."""
    distance = torch.zeros(())
    for layer in teacher:
        if isinstance(layer, nn.BatchNorm1d):
            variance, mean = torch.var_mean(points, 0, correction=0)
            kept = dict(layer.named_buffers())
            moments = (mean, variance, kept["running_mean"], kept["running_var"])
            distance = distance + moment_distance(*moments, relative=True)
        points = layer(points)
    return points, distance


class Buffer:
    """The set in the making. Each class has an equal share; the unbalanced twin has one for all."""

    def __init__(self, balanced: bool) -> None:
        self.balanced = balanced
        self.points = torch.empty(0, 2)
        self.logits = torch.empty(0, CLASSES)  # the teacher's
        self.priority = torch.empty(0)  # δ: how much the student still has to learn here
        self.weight = torch.empty(0)  # the importance weight of the last visit

    def counts(self) -> Tensor:  # (K,)
        """Points of each class, by the teacher's decision."""
        return self.logits.argmax(1).bincount(minlength=CLASSES)

    def add(self, points: Tensor, logits: Tensor, rank: Tensor, refresh: float = 0.1) -> None:
        """Fill what is short, then replace a tenth: highest φ in, lowest priority out."""
        share = SHARE if self.balanced else SIZE
        stays = []
        enters = []
        for group in range(CLASSES if self.balanced else 1):
            # Without balance, everything is in group 0.
            old = torch.where(self.logits.argmax(1) * self.balanced == group)[0]
            new = torch.where(logits.argmax(1) * self.balanced == group)[0]
            welcome = min(len(new), share - len(old) + ceil(refresh * share), share)
            old = old[self.priority[old].argsort(descending=True)]
            stays.append(old[: share - welcome])
            enters.append(new[rank[new].argsort(descending=True)][:welcome])
        stay = torch.cat(stays)
        enter = torch.cat(enters)
        highest = torch.cat([self.priority, torch.ones(1)]).max()  # a new point is visited soon
        self.points = torch.cat([self.points[stay], points[enter]])
        self.logits = torch.cat([self.logits[stay], logits[enter]])
        self.priority = torch.cat([self.priority[stay], highest.expand(len(enter))])
        self.weight = torch.cat([self.weight[stay], torch.ones(len(enter))])


def synthesize(
    teacher: nn.Sequential, calls: int, balanced: bool = True
) -> tuple[Buffer, list[Tensor]]:
    """Make a set from the teacher alone; also the set's points after each call."""
    generator = network(16 + CLASSES, 128, 2)
    student = network(2, 32, CLASSES)  # the adversary
    generator_optimiser = torch.optim.Adam(generator.parameters(), 0.01, betas=(0.5, 0.999))
    student_optimiser = torch.optim.Adam(student.parameters(), 0.01)
    buffer = Buffer(balanced)
    history = []
    for call in range(1, calls + 1):
        # 1. The generator learns a batch: noise and a wanted class in, points out.
        wanted = torch.arange(90) % CLASSES
        noise = torch.cat([torch.randn(90, 16), nn.functional.one_hot(wanted, CLASSES)], 1)
        held = buffer.counts() * balanced
        student.eval()
        for _ in range(10):
            points = REACH * generator(noise).tanh()
            logits, unfamiliar = ask(teacher, points)
            loss = 0.5 * class_loss(logits, wanted)
            if call > 5:  # before that, the student knows nothing worth contradicting
                loss = loss + adversarial_loss(logits, student(points))
            importance = phi(logits.detach(), held, SIZE, gamma=1.0)  # φ = diversity · difficulty
            update(generator_optimiser, 3 * unfamiliar + (importance * loss).mean())

        # 2. The batch is offered to the buffer, which takes the points with the highest φ.
        with torch.no_grad():
            points = REACH * generator(noise).tanh()
            logits, _ = ask(teacher, points)
        buffer.add(points, logits, rank=phi(logits, held, SIZE, gamma=1.0))
        history.append(buffer.points)

        # 3. The student learns from what it finds hard; the weights undo the draw's bias.
        student.train()
        for _ in range(15):
            chances = draw_chances(buffer.priority, exponent=0.5)
            drawn = draw(chances, 64, torch.default_generator)
            weight = importance_weights(chances, drawn, beta=call / calls)
            answers = student(buffer.points[drawn])
            loss = teaching_loss(buffer.logits[drawn], answers)
            update(student_optimiser, (weight * loss).mean())
            disagreement = divergence(buffer.logits[drawn], answers.detach())
            buffer.priority[drawn] = buffer.weight[drawn] * disagreement  # δ = w · KL
            buffer.weight[drawn] = weight
    return buffer, history


def distil(teacher: nn.Sequential, points: Tensor, steps: int, seed: int) -> nn.Sequential:
    """A fresh student, taught by the teacher's answers to these points and nothing else."""
    torch.manual_seed(seed)  # every set's student starts alike
    student = network(2, 32, CLASSES)
    return train(student, points, teacher(points), teaching_loss, steps, 64)


@dataclass(frozen=True)
class Result:
    """What the table and the picture show."""

    accuracy: dict[str, float]
    """Percent of fresh real points: the teacher, and each set's student after its last step."""
    counts: dict[str, list[int]]
    """Points of each class that each learnt from; in the sets, by the teacher's decision."""
    history: list[Tensor]
    """The set's points after each call of the generator."""
    teacher: nn.Sequential
    student: nn.Sequential
    """The student of the set."""


def run(seed: int = 0, calls: int = 40, steps: int = 400) -> Result:
    """The method and its controls: sets of equal size, students with equal steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = train_teacher()
        buffer, history = synthesize(teacher, calls)
        twin, _ = synthesize(teacher, calls, balanced=False)
        noise = REACH * (2 * torch.rand(SIZE, 2) - 1)
        real, _ = spirals(SIZE)
        sets = {
            "the set": buffer.points,
            "its unbalanced twin": twin.points,
            "uniform noise": noise,
            "real points": real,
        }
        students = {name: distil(teacher, points, steps, seed) for name, points in sets.items()}
        points, labels = spirals(3000)
    accuracy = {}
    for name, judged in {"teacher": teacher, **students}.items():
        hits = judged(points).argmax(1) == labels
        accuracy[name] = 100 * hits.float().mean().item()
    counts = {"teacher": [1000] * CLASSES}
    for name, learnt_from in sets.items():
        decisions = teacher(learnt_from).argmax(1)
        counts[name] = decisions.bincount(minlength=CLASSES).tolist()
    return Result(accuracy, counts, history, teacher, students["the set"])


def draw_panel(
    axes: Axes, title: str, judge: nn.Sequential, points: Tensor, labels: Tensor, size: int
) -> None:
    """The regions of the network that judges, and points of each class on them."""
    side = torch.linspace(-REACH, REACH, 200)
    regions = judge(torch.cartesian_prod(side, side)).argmax(1).view(len(side), -1).T
    for label, colour in enumerate(COLOURS):
        region = (regions == label).float()
        axes.contourf(side, side, region, [0.5, 1], colors=[colour], alpha=0.3)
        across, up = points[labels == label].T
        style: dict[str, Any] = {"color": colour, "edgecolors": "white", "linewidths": 0.3}
        axes.scatter(across, up, size, label=f"class {label}", zorder=2, **style)
    axes.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    axes.label_outer()


def draw_picture(result: Result, path: Path) -> None:
    """The teacher's regions, the set after some calls, and the regions of the student it taught."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 4.5), layout="constrained")
    panels = figure.subplot_mosaic("LLabRR;LLcdRR")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        real, labels = spirals(SIZE)
    accuracy = result.accuracy
    title = f"Teacher, {accuracy['teacher']:.2f} %, and real points"
    draw_panel(panels["L"], title, result.teacher, real, labels, 20)
    panels["L"].legend(loc="lower left", title="point / region")
    last = len(result.history)
    for name, call in zip("abcd", (1, 3, 10, last), strict=True):
        points = result.history[min(call, last) - 1]
        decisions = result.teacher(points).argmax(1)
        draw_panel(panels[name], f"Set, call {call}", result.teacher, points, decisions, 8)
    title = f"Student of the set, {accuracy['the set']:.2f} %, and the set"
    draw_panel(panels["R"], title, result.student, points, decisions, 20)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(arguments: list[str] | None = None) -> int:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser("python -m inversion.toy", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("toy.png"), help="where the picture goes")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same numbers")
    options = parser.parse_args(arguments)
    if options.out.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--out must end in .png, .svg or .pdf, got {options.out}")
    torch.set_num_threads(1)
    result = run(options.seed)
    print(f"{'learnt from':22}{'points of each class':24}accuracy on fresh real points")
    for name, accuracy in result.accuracy.items():
        counts = " ".join(map(str, result.counts[name]))
        print(f"{name:22}{counts:24}{accuracy:.2f} %")
    draw_picture(result, options.out)
    print(f"picture: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
