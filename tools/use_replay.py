"""Learn classes two at a time, without the images of earlier ones: a set made from the network
itself, before each task, keeps what it knew.

    python tools/use_replay.py --data MNIST --out configs/results/uses-replay.json

Each task brings real images of two new classes, with labels. Beside them the network sees images of
one kind, and its own answers to these from before the task. Kinds: a small synthetic set; as many
real images of the earlier classes; shaders; noise; or none. The test part judges, over all classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from uses import KINDS, Record, accuracy, draw_pictures, spread_over, use_parser
from verbs import plain_endings

from distill import (
    Classifier,
    Images,
    ModelSpec,
    Runtime,
    build_classifier,
    draw_balanced,
    load_images,
)
from inversion import SynthesisOptions, synthesize
from inversion.options import AdversaryOptions, GeneratorOptions, ObjectiveOptions
from synthesis_kernels.backend import keep_freed_memory

TOGETHER = 2
"""Classes that a task brings."""
BATCH = 32
"""New images in a step, and as many that are replayed."""


class First(nn.Module):
    """A network of which only the first classes are asked: those it has learnt so far."""

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network = network
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the first classes."""
        return self.network(images)[:, : self.classes]


def first_classes(learner: Classifier, classes: int) -> Classifier:
    """A copy of the network as it is now, for the classes that it knows."""
    network = First(copy.deepcopy(learner.network), classes).eval().requires_grad_(False)
    return Classifier(network, replace(learner.spec, model="first", classes=classes))


def make_set(teacher: Classifier, images: int, calls: int, seed: int) -> Tensor:
    """A small set of the classes that the network knows; (N, C, H, W) uint8."""
    options = SynthesisOptions(
        images=images,
        batch=100,
        calls=calls,
        patience=calls,
        generator=GeneratorOptions(width=16),
        objective=ObjectiveOptions(bn=60, adversary_after=6, spread=0.3),
        adversary=AdversaryOptions(steps=5),
    )
    with TemporaryDirectory() as folder:
        runtime = Runtime(seed=seed, device="cpu", precision="float32", quiet=True)
        return synthesize(teacher, options, Path(folder) / "set", runtime).images


def batches(images: Tensor, count: int, steps: int, seed: int) -> Iterator[Tensor]:
    """The places of `count` random images, for each step."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randint(len(images), (count,), generator=generator)


def learn_task(
    learner: Classifier, new: Images, replayed: Tensor | None, known: int, steps: int, seed: int
) -> None:
    """Learn new classes from their labels, and the `known` ones from the network's own answers."""
    classes = known + TOGETHER
    before = first_classes(learner, known) if replayed is not None else None
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-3)
    learner.train()
    for step, places in enumerate(batches(new.images, BATCH, steps, seed)):
        images = new.images[places].float() / 255
        labels = new.labels[places]  # type: ignore[index]
        targets = functional.one_hot(labels, classes).float()
        if before is not None and replayed is not None:
            old = replayed[next(batches(replayed, BATCH, 1, seed * 10_007 + step))].float() / 255
            with torch.no_grad():
                answers = before(old).softmax(1)
            targets = torch.cat([targets, functional.pad(answers, (0, TOGETHER))])
            images = torch.cat([images, old])
        logits = learner(images)[:, :classes]
        loss = functional.cross_entropy(logits, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    learner.eval()


def replay_images(
    kind: str, learner: Classifier, train: Images, known: int, given: Any, seed: int
) -> Tensor | None:
    """What is seen beside the new classes; None for nothing."""
    if kind == "none":
        return None
    if kind == "ours":
        return make_set(first_classes(learner, known), given.images, given.calls, seed)
    if kind == "real":
        assert train.labels is not None
        earlier = train.chosen((train.labels < known).nonzero().flatten())
        return draw_balanced(earlier, known, given.images, seed).images
    return draw_pictures(kind, given.images, seed, learner)


def learn_all(kind: str, seed: int, train: Images, test: Images, given: Any) -> float:
    """Accuracy over all classes after the last task."""
    assert train.labels is not None
    classes = int(train.labels.max()) + 1
    channels, *size = train.images.shape[1:]
    spec = ModelSpec(given.network, channels=channels, size=tuple(size), classes=classes)
    learner = build_classifier(spec, seed)
    for known in range(0, classes, TOGETHER):
        is_new = (train.labels >= known) & (train.labels < known + TOGETHER)
        new = train.chosen(is_new.nonzero().flatten())
        task_seed = 100 * seed + known
        replayed = replay_images(kind, learner, train, known, given, task_seed) if known else None
        learn_task(learner, new, replayed, known, given.steps, task_seed)
    return accuracy(learner, test)


def run(given: Any) -> None:
    """Measure every kind with every seed."""
    train = load_images(given.data, "train")
    test = spread_over(load_images(given.data, "test"), given.test)
    record = Record(given.out, {given.data: "DATA"})
    who = {"network": given.network, "case": f"two at a time, sets of {given.calls} calls"}
    who |= {"set_size": given.images, "steps": given.steps, "calls": given.calls}
    for seed in given.seeds:
        for kind in ("none", *KINDS):
            if kind in (*given.kinds, "none"):
                work = partial(learn_all, kind, seed, train, test, given)
                record.measure({**who, "images": kind, "seed": seed}, work)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = use_parser(__doc__)
    parser.set_defaults(images=500)
    parser.add_argument("--network", default="lenet5", help="what learns")
    parser.add_argument("--steps", type=int, default=150, help="of each task")
    parser.add_argument("--calls", type=int, default=15, help="of the generator, for each set")
    keep_freed_memory()
    with plain_endings():
        run(parser.parse_args())
