"""The whole method on points in a plane: `python -m inversion.toy [--out toy.png] [--seed 0]`.

A teacher learns three spiral arms, and the points it learnt from are thrown away. A generator makes
new points, which the teacher finds familiar and an adversarial student finds hard. A small buffer,
balanced by class, keeps the best. At the end a fresh student learns from the buffer alone. Read from
top to bottom, this file explains SSD-KD (Small Scale Data-Free Knowledge Distillation, CVPR 2024).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from math import ceil, pi
from pathlib import Path

import torch
from torch import Tensor, nn

from inversion.objectives import adversarial_loss, class_loss, phi
from synthesis_kernels.bn_match import moment_distance
from synthesis_kernels.divergence import divergence
from synthesis_kernels.priority import draw, draw_chances, importance_weights

CLASSES = 3
SHARE = 50  # points of each class in the set
SIZE = CLASSES * SHARE  # points in the set, and in every set it is compared with
REACH = 1.5  # a point's coordinates lie in [-REACH, REACH], as a pixel lies in [0, 1]
TEMPERATURE = 2.0


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


def train_teacher() -> nn.Sequential:
    """A network that knows the spirals. Its training points never leave this function."""
    points, labels = spirals(3000)
    teacher = network(2, 128, CLASSES)
    optimiser = torch.optim.Adam(teacher.parameters(), 0.01)
    for _ in range(300):
        batch = torch.randint(len(points), (256,))
        update(optimiser, class_loss(teacher(points[batch]), labels[batch]).mean())
    return teacher.eval().requires_grad_(False)


def ask(teacher: nn.Sequential, points: Tensor) -> tuple[Tensor, Tensor]:  # (B, K), ()
    """The teacher's answers, and L_BN: how far the batch's mean and variance at each BatchNorm are
    from those the layer kept of the real points."""
    distance = torch.zeros(())
    for layer in teacher:
        if isinstance(layer, nn.BatchNorm1d):
            variance, mean = torch.var_mean(points, 0, correction=0)
            kept = layer.running_mean, layer.running_var
            distance = distance + moment_distance(mean, variance, *kept, relative=True)
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
        stays = torch.cat(stays)
        enters = torch.cat(enters)
        highest = torch.cat([self.priority, torch.ones(1)]).max()  # a new point is visited soon
        self.points = torch.cat([self.points[stays], points[enters]])
        self.logits = torch.cat([self.logits[stays], logits[enters]])
        self.priority = torch.cat([self.priority[stays], highest.expand(len(enters))])
        self.weight = torch.cat([self.weight[stays], torch.ones(len(enters))])


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
            loss = divergence(buffer.logits[drawn], answers, TEMPERATURE)
            update(student_optimiser, (weight * loss).mean())
            disagreement = divergence(buffer.logits[drawn], answers.detach())
            buffer.priority[drawn] = buffer.weight[drawn] * disagreement  # δ = w · KL
            buffer.weight[drawn] = weight
    return buffer, history


def distil(teacher: nn.Sequential, points: Tensor, steps: int, seed: int) -> nn.Sequential:
    """A fresh student, taught by the teacher's answers to these points and nothing else."""
    torch.manual_seed(seed)  # every set's student starts alike
    student = network(2, 32, CLASSES)
    optimiser = torch.optim.Adam(student.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    logits = teacher(points)
    for _ in range(steps):
        batch = torch.randint(len(points), (64,))
        update(optimiser, divergence(logits[batch], student(points[batch]), TEMPERATURE).mean())
        schedule.step()
    return student.eval().requires_grad_(False)


@dataclass(frozen=True)
class Result:
    """What the table and the picture show."""

    accuracy: dict[str, float]
    """Percent of fresh real points, of the teacher and of each set's student after its last step."""
    counts: dict[str, list[int]]
    """Points of each class in each set, by the teacher's decision."""
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
        sets = {"the set": buffer.points, "its unbalanced twin": twin.points}
        sets |= {"uniform noise": noise, "real points": real}
        students = {name: distil(teacher, points, steps, seed) for name, points in sets.items()}
        points, labels = spirals(3000)
    judged = {"teacher": teacher} | students
    right = {name: net(points).argmax(1) == labels for name, net in judged.items()}
    accuracy = {name: 100 * hits.float().mean().item() for name, hits in right.items()}
    decided = {name: teacher(points).argmax(1) for name, points in sets.items()}
    counts = {name: row.bincount(minlength=CLASSES).tolist() for name, row in decided.items()}
    return Result(accuracy, counts, history, teacher, students["the set"])


def draw_picture(result: Result, path: Path) -> None:
    """The teacher's regions, the set on its way, and the regions of the student it taught."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    colours = ListedColormap(["#0072b2", "#d55e00", "#009e73"])  # told apart by the colour-blind
    side = torch.linspace(-REACH, REACH, 300)
    grid = torch.cartesian_prod(side, side)
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    panels = figure.subplot_mosaic("LLabRR;LLcdRR")

    def panel(name: str, title: str, net: nn.Sequential, points: Tensor, labels: Tensor) -> None:
        axes = panels[name]
        regions = net(grid).argmax(1).view(len(side), -1).T
        extent = (-REACH, REACH, -REACH, REACH)
        limits = {"cmap": colours, "vmin": 0, "vmax": CLASSES - 1}
        axes.imshow(regions, origin="lower", extent=extent, alpha=0.3, **limits)
        size = 9 if name in "abcd" else 16
        style = {"s": size, "edgecolors": "white", "linewidths": 0.3}
        artist = axes.scatter(*points.T, c=labels, **style, **limits)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("$x_1$")
        axes.set_ylabel("$x_2$")
        axes.label_outer()
        if name == "L":
            handles, _ = artist.legend_elements(markersize=7)
            names = [f"class {label}" for label in range(CLASSES)]
            axes.legend(handles, names, loc="lower left", title="teacher's class")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        real, labels = spirals(SIZE)
    score = result.accuracy
    panel("L", f"Teacher, {score['teacher']:.1f} %; real points nobody else saw", result.teacher, real, labels)
    calls = len(result.history)
    for name, call in zip("abcd", (1, min(3, calls), min(10, calls), calls), strict=True):
        points = result.history[call - 1]
        panel(name, f"set after call {call}", result.teacher, points, result.teacher(points).argmax(1))
    points = result.history[-1]
    labels = result.teacher(points).argmax(1)
    panel("R", f"Student, {score['the set']:.1f} %; the {SIZE} points it saw", result.student, points, labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> int:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser("python -m inversion.toy", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("toy.png"), help="where the picture goes")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = run(options.seed)
    print(f"{'learnt from':22}{'points of each class':24}accuracy on fresh real points")
    for name, accuracy in result.accuracy.items():
        counts = " ".join(map(str, result.counts.get(name, ["1000"] * CLASSES)))
        print(f"{name:22}{counts:24}{accuracy:.2f} %")
    try:
        draw_picture(result, options.out)
    except ModuleNotFoundError as error:
        print(f"no picture: {error}; pip install 'echoset[plot]'", file=sys.stderr)
        return 0
    print(f"picture: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
